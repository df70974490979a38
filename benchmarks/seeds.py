"""Figures of several runs that differ in their seed: OUT/NAME-SEED.json, each {"rows": {row: {figure: value}}, ...}."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undiffuse.devices import conditions
from undiffuse.files import read_json, write_json

Rows = dict[str, dict[str, Any]]


def joined(out: Path) -> Rows:
    """Row -> figure -> its mean, least and most over the seeds, and their number; without figures that are None."""
    seen: dict[str, dict[str, list[float]]] = {}
    for path in sorted(out.glob("*-[0-9].json")):
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
    runs = {
        one.stem: {k: v for k, v in read_json(one).items() if k != "rows"} for one in sorted(out.glob("*-[0-9].json"))
    }
    write_json(to, {"command": " ".join(["python", *sys.argv]), **conditions(), "rows": rows, "runs": runs})
    return rows
