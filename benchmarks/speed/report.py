"""The results of benchmarks/speed/run.py, as a table and as a figure."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measuring import Figures
from peers import PEERS
from systems import OURS

from undiffuse.plots import save_figure


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Figures]]:
    """The figures in nested dictionaries, with the keys that lead to them."""
    if isinstance(tree, dict) and "median" in tree:
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))


def table(results: Figures) -> str:
    """One line for every figure."""
    lines = []
    for name, section in results.items():
        lines.append(f"\n{name}")
        for path, figure in leaves(section["figures"]):
            spread = f"{figure['min']:g} to {figure['max']:g}" if figure["repeats"] > 1 else ""
            lines.append(f"  {', '.join(path):75} {figure['median']:>9g} {figure['unit']:34} {spread}")
        if name == "breakdown":
            for task, found in section["figures"].items():
                lines += [f"  {task}, {kind:60} {share:9.1%}" for kind, share in found["shares"].items()]
    return "\n".join(lines)


COLOURS = {OURS: "C0", "diffusers": "C1", "denoising-diffusion-pytorch": "C2"}
SHORT = {"denoising-diffusion-pytorch": "dd-pytorch"}


def draw(results: Figures, path: Path) -> None:
    """The figures as panels: the ratios, shares and growth that were measured."""
    found = {name: section["figures"] for name, section in results.items()}
    panels = [panel for name, panel in PANELS if name in found]
    if not panels:
        return
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        panel(ax, found)
        ax.title.set_fontsize(10)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    save_figure(figure, path)


def _bars(ax: Axes, groups: dict[str, dict[str, Figures]], colours: dict[str, str], form: str) -> None:
    """Horizontal bars: group -> name -> figure, with the spread as a line and the median as text."""
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    height = 0.8 / len(names)
    for row, bars in enumerate(groups.values()):
        for number, name in enumerate(names):
            if name not in bars:
                continue
            figure, y = bars[name], row + (number - (len(names) - 1) / 2) * height
            label = SHORT.get(name, name) if row == 0 else None
            ax.barh(y, figure["median"], 0.9 * height, color=colours[name], alpha=0.85, label=label)
            ax.plot([figure["min"], figure["max"]], [y, y], color="black", linewidth=0.8)
            end = max(figure["median"], figure["max"], 0)
            ax.annotate(
                form.format(figure["median"]), (end, y), (3, 0), textcoords="offset points", va="center", size=7
            )
    ax.set_yticks(range(len(groups)), list(groups))
    ax.invert_yaxis()
    ax.margins(x=0.15)
    if len(names) > 1:
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=len(names), frameon=False)


def _ratios(ax: Axes, found: Figures) -> None:
    groups: dict[str, dict[str, Figures]] = {}
    for name in PEERS:
        pair = f"{OURS} / {name}"
        for key, label in (("own networks", "training,\nown networks"), ("equal FLOPs", "training,\nequal FLOPs")):
            groups.setdefault(label, {})[name] = found["training"][pair][key]
        for task, label in (("64 images", "sampling 64"), ("single image", "single image")):
            for system, figure in found.get("sampling", {}).get(task, {}).items():
                ours, _, peer = system.partition(" / ")
                if peer == name:
                    engine = ours.removeprefix(OURS).strip(" ()") or "torch"
                    groups.setdefault(f"{label},\n{engine}", {})[name] = figure
    _bars(ax, groups, COLOURS, "{:.1f}")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title("undiffuse: how many times as fast as ...")


def _shares(ax: Axes, found: Figures) -> None:
    groups = {
        SHORT.get(name, name).replace(" at the FLOPs of ", "\nat FLOPs of ").replace("denoising-diffusion", "dd"): {
            what: figures[what]["share"] for what in ("training", "evaluation")
        }
        for name, figures in found["training"].items()
        if "training" in figures
    }
    _bars(ax, groups, {"training": "C0", "evaluation": "C9"}, "{:.2f}")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title("FLOP/s, as a share of matrix multiplication")


def _breakdown(ax: Axes, found: Figures) -> None:
    tasks = found["breakdown"]
    left = np.zeros(len(tasks))
    for number, kind in enumerate(next(iter(tasks.values()))["shares"]):
        shares = np.array([100 * task["shares"][kind] for task in tasks.values()])
        ax.barh(list(tasks), shares, 0.5, left=left, label=kind, color=f"C{number}")
        for row, share in enumerate(shares):
            if share >= 4:
                ax.text(left[row] + share / 2, row, f"{share:.0f}", ha="center", va="center", size=7, color="white")
        left += shares
    ax.set_title("Where undiffuse's time goes, %")
    ax.set_ylim(-0.5, len(tasks) + 0.9)
    ax.legend(fontsize=6.5, loc="upper left", ncols=2, columnspacing=1)


def _overheads(ax: Axes, found: Figures) -> None:
    groups: dict[str, dict[str, Figures]] = {}
    for name in (OURS, *PEERS):
        for what, figures in found["overhead"][name].items():
            groups.setdefault(what.replace(", ", ",\n"), {})[name] = figures["overhead"]
    _bars(ax, groups, COLOURS, "{:.1f}")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_title("Time beyond the bare network's, %")


def _memory_bars(ax: Axes, found: Figures) -> None:
    _bars(ax, found["memory"], COLOURS, "{:.0f}")
    ax.set_title("Peak memory above the imports, MB")


def _line(ax: Axes, figures: dict[str, Figures], label: str | None = None, colour: str = "C0") -> None:
    x = [float(key) for key in figures]
    median, low, high = (np.array([f[key] for f in figures.values()]) for key in ("median", "min", "max"))
    ax.errorbar(
        x, median, [median - low, high - median], marker=".", linewidth=1.4, capsize=2, label=label, color=colour
    )


def _both(ax: Axes, figures: Figures, key: str) -> None:
    for what, colour in (("training", "C0"), ("evaluation", "C9")):
        _line(ax, {x: figure[key] for x, figure in figures[what].items()}, what, colour)
    _log_x(ax, figures["training"])
    ax.legend(fontsize=7)


def _log_x(ax: Axes, keys: Iterable[str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks([float(key) for key in keys], [f"{int(key):,}" for key in keys])
    ax.minorticks_off()


def _resolutions(ax: Axes, found: Figures) -> None:
    _both(ax, found["resolution"], "time")
    ax.set(title="ms per image by side in pixels")


def _batches(ax: Axes, found: Figures) -> None:
    _both(ax, found["batch-size"], "rate")
    ax.set(title="images/s by batch size")


def _data_sizes(ax: Axes, found: Figures) -> None:
    for key, colour in (("peak", "C0"), ("of it mapped from files", "C9")):
        _line(ax, {n: figures[key] for n, figures in found["data-size"].items()}, key, colour)
    _log_x(ax, found["data-size"])
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=7)
    ax.set(title="Peak memory of training, MB, by images")


def _steps(ax: Axes, found: Figures) -> None:
    figures = found["steps"]
    _line(ax, figures)
    last = list(figures)[-1]
    ax.plot([0, float(last)], [0, figures[last]["median"]], "--", color="grey", linewidth=1, label="proportional")
    ax.legend(fontsize=7)
    ax.set(title="seconds per 64 images by evaluations")


def _processes(ax: Axes, found: Figures) -> None:
    groups = {way.replace(", ", ",\n"): {"training": f["training"]} for way, f in found["processes"].items()}
    _bars(ax, groups, {"training": "C0"}, "{:.2f}")
    ax.set_title("training steps/s by processes")


PANELS: tuple[tuple[str, Callable[[Axes, Figures], None]], ...] = (
    ("training", _ratios),
    ("training", _shares),
    ("breakdown", _breakdown),
    ("overhead", _overheads),
    ("memory", _memory_bars),
    ("data-size", _data_sizes),
    ("resolution", _resolutions),
    ("batch-size", _batches),
    ("steps", _steps),
    ("processes", _processes),
)
