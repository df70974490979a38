"""Copies the model of a finished run into the package: python tools/ship_model.py RUN NAME [MEASURED.json].

MEASURED.json is what `undiffuse evaluate RUN --metrics bpd --json MEASURED.json` has written: the number goes into the
model's card. Weights of more than MOST bytes, and those of students (NAME is TEACHER/1-step), are rounded to float16;
such may be twice as large. Measure after that.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from undiffuse.files import atomic_folder, read_json, write_json
from undiffuse.model import BUILT_IN, find, load

MOST = 11_000_000  # bytes: the wheel is to stay small


def main(run: str, name: str, measured: str | None = None) -> None:
    """Checks that the model loads and is small enough, and that the number is its own; then copies its two files."""
    folder = find(run)
    model = load(folder)
    print(f"{folder}: {model.parameters / 1e6:.2f}M parameters")
    weights = load_file(folder / "weights.safetensors")
    if "/" in name or sum(weight.nbytes for weight in weights.values()) > MOST:
        weights = {key: weight.half() for key, weight in weights.items()}
    size = sum(weight.nbytes for weight in weights.values())
    if size > MOST:
        sys.exit(f"{size} bytes of weights are more than {MOST}")
    card = read_json(folder / "model.json")
    if measured:
        found = read_json(Path(measured))
        if found["conditions"]["model"]["fingerprint"] != model.fingerprint:
            sys.exit(f"{measured} was measured on another model than {folder}")
        conditions = {key: found["conditions"].get(key) for key in ("data", "split", "bound", "steps", "draws", "seed")}
        card["measured"] = {"bits_per_dim": found["bits_per_dim"]["bits_per_dim"], "n": found["n"], **conditions}
    with atomic_folder(BUILT_IN / name) as target:
        save_file(weights, Path(target) / "weights.safetensors")
        write_json(Path(target) / "model.json", card)
    print(f"{BUILT_IN / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
