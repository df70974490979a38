"""Figures of several runs that differ in their seed: OUT/NAME-SEED.json, each {"rows": {row: {figure: value}}, ...}."""

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse import load
from undiffuse.devices import conditions
from undiffuse.errors import UndiffuseError
from undiffuse.files import read_json, write_json
from undiffuse.generate import Recipe, generate

Rows = dict[str, dict[str, Any]]
SHOWN = 12
"""Samples of each system in a figure."""
ASKED = ("data", "teacher", "guidance", "minutes", "n")
KINDS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def options_of(
    doc: str | None,
    names: Iterable[str],
    *,
    minutes: float | str,
    n: int,
    seeds: int = 3,
    figure: bool = False,
    **more: Any,
) -> argparse.Namespace:
    """The options of such a benchmark, given these defaults; `more` are its own, by name, each with its default.

    The folder OUT is there afterwards, and torch has one thread.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (more | {"minutes": minutes, "n": n, "seeds": seeds}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--only", choices=tuple(names))
    parser.add_argument("--report", type=Path)
    if figure:
        parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    return options


def missing(options: argparse.Namespace, names: Iterable[str]) -> Iterator[tuple[str, int, Path]]:
    """What OUT has not, seed by seed: a name, a seed and the file to write.

    Ends the program if what it has was measured otherwise.
    """
    for seed in range(options.seeds):
        for name in [options.only] if options.only else names:
            path = options.out / f"{name}-{seed}.json"
            if not path.exists():
                yield name, seed, path
                continue
            for key, was in read_json(path).items():
                if key in ASKED and was != (now := getattr(options, key, was)):
                    sys.exit(f"{path} was measured with {key} = {was}, not {now}: name another folder")


def measure(path: Path, options: argparse.Namespace, seed: int, figures: Callable[[], dict[str, Any]]) -> None:
    """Writes what `figures` finds, with what was asked and where. A run that fails is written down as that, and the
    others go on; delete its file to try again."""
    asked = {key: getattr(options, key) for key in ASKED if hasattr(options, key)}
    try:
        found = figures()
    except UndiffuseError as error:
        found = {"failed": str(error), "rows": {}}
        print(f"{path.stem} failed: {error}", flush=True)
    write_json(path, {**asked, "seed": seed, **conditions(), "processor": processor(), **found})


def processor() -> str:
    """The name of the CPU and what it is quick at, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {key.strip(): value.split() for key, value in facts.items()}
    kinds = [kind for kind in KINDS if kind in known.get("flags", ())]
    return " ".join([*known.get("model name", ["?"]), *kinds])


def _measured(out: Path) -> list[Path]:
    """The files OUT/NAME-SEED.json."""
    return sorted(one for one in out.glob("*-*.json") if one.stem.rpartition("-")[2].isdigit())


def joined(out: Path) -> Rows:
    """Row -> figure -> its mean, least and most over the seeds, and their number; without figures that are None."""
    seen: dict[str, dict[str, list[float]]] = {}
    for path in _measured(out):
        for row, figures in read_json(path)["rows"].items():
            for key, value in figures.items():
                if value is not None:
                    seen.setdefault(row, {}).setdefault(key, []).append(value)
    return {
        row: {
            key: {"mean": statistics.fmean(values), "least": min(values), "most": max(values), "seeds": len(values)}
            for key, values in figures.items()
        }
        for row, figures in seen.items()
    }


def table(rows: Rows, keys: Sequence[str]) -> list[str]:
    """Lines of Markdown: the mean, and in brackets the least and the most where there are several seeds."""

    def cell(figures: dict[str, Any], key: str) -> str:
        if key not in figures:
            return "-"
        one = figures[key]
        spread = f" ({one['least']:.3g} to {one['most']:.3g})" if one["most"] > one["least"] else ""
        return f"{one['mean']:.3g}{spread}"

    lines = ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    return lines + [f"| {row} | {' | '.join(cell(found, key) for key in keys)} |" for row, found in rows.items()]


def report(out: Path, to: Path, keys: Sequence[str]) -> Rows:
    """Prints the table of a benchmark's folder, and writes the figures to `to`, with the facts of each run."""
    rows = joined(out)
    print("\n".join(table(rows, keys)))
    runs = {one.stem: {k: v for k, v in read_json(one).items() if k != "rows"} for one in _measured(out)}
    write_json(to, {"command": " ".join(["python", *sys.argv]), **conditions(), "rows": rows, "runs": runs})
    return rows


def first_samples(run: Path, recipe: Recipe) -> np.ndarray:
    """The first SHOWN samples of a model, rows of pictures."""
    return np.concatenate(list(generate(load(run), recipe, range(SHOWN))))
