"""Copies the model of a finished run into the package: python tools/ship_model.py RUN NAME."""

import shutil
import sys
from pathlib import Path

from undiffuse.files import atomic_folder
from undiffuse.model import BUILT_IN, find, load

MOST = 10_000_000  # bytes: the wheel is to stay small


def main(run: str, name: str) -> None:
    """Checks that the model loads and is small enough, then copies its two files."""
    folder = find(run)
    print(f"{folder}: {load(folder).parameters / 1e6:.2f}M parameters")
    size = (folder / "weights.safetensors").stat().st_size
    if size > MOST:
        sys.exit(f"{size} bytes of weights are more than {MOST}")
    with atomic_folder(BUILT_IN / name) as target:
        for file in ("model.json", "weights.safetensors"):
            shutil.copyfile(folder / file, Path(target) / file)
    print(f"{BUILT_IN / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
