"""Every figure the tool draws. Images are uint8 (N, H, W, C) arrays; figures are PNG files, written atomically."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as Route
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox
from PIL import Image

from undiffuse.files import atomic_file

MARGIN = 2


def grid_of(images: np.ndarray, columns: int | None = None, background: int = 255) -> np.ndarray:
    """The images tiled into one, row by row: uint8 (H', W', C). `columns` None: as square as possible."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (rows * (height + MARGIN) + MARGIN, columns * (width + MARGIN) + MARGIN, channels), background, np.uint8
    )
    for index, image in enumerate(images):
        y, x = (
            MARGIN + place * (side + MARGIN)
            for place, side in zip(divmod(index, columns), (height, width), strict=True)
        )
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_image(image: np.ndarray, path: str | Path, scale: int = 1) -> None:
    """One uint8 (H, W, C) image as PNG, each pixel `scale` pixels to a side."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG")


def save_grid(images: np.ndarray, path: str | Path, columns: int | None = None) -> None:
    """The images as one PNG, small ones enlarged so that they can be seen."""
    save_image(grid_of(images, columns), path, scale=max(1, round(64 / images.shape[1])))


def strips(rows: Sequence[tuple[str, np.ndarray]], columns: Sequence[str], title: str, path: str | Path) -> None:
    """One figure with rows of images, a name at the left of each and a heading over every column.

    rows: (name, uint8 (len(columns), H, W, C)); a row may be shorter than the headings.
    """
    sheets = [grid_of(_padded(images, len(columns)), len(columns)) for _, images in rows]
    height, width = rows[0][1].shape[1] + MARGIN, rows[0][1].shape[2] + MARGIN
    figure = Figure(figsize=(1.6 + 0.62 * len(columns), 0.75 + 0.62 * len(rows) * height / width))
    axes = figure.subplots()
    sheet = np.concatenate(sheets)
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    height = sheets[0].shape[0]
    axes.set_yticks([height * (row + 0.5) for row in range(len(rows))], [name for name, _ in rows])
    axes.set_xticks([width * (column + 0.5) for column in range(len(columns))], columns)
    axes.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    save_figure(figure, path)


def _padded(images: np.ndarray, count: int) -> np.ndarray:
    blank = np.full((count - len(images), *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, blank])


Panel = tuple[str, str, Mapping[str, tuple[np.ndarray, ...]]]


COLOURS = 10
"""Those of matplotlib's cycle."""


def curves(panels: Sequence[Panel], path: str | Path, log: Literal["", "x", "xy"] = "") -> None:
    """Line plots side by side: (title, x label, name -> (x, y)) each; `log` names the logarithmic axes.

    In (x, y, z), z is a reference for y: dashed, in the same colour.
    """
    figure = Figure(figsize=(3.6 * len(panels), 3.0))
    all_axes = figure.subplots(1, len(panels), squeeze=False)
    for axes, (title, x_label, lines) in zip(all_axes[0], panels, strict=True):
        for number, (name, (x, y, *held_to)) in enumerate(lines.items()):
            style = ("-", "-.", ":")[number // COLOURS % 3]  # where colours come again
            (line,) = axes.plot(x, y, style, label=name, linewidth=1.4, marker="." if len(x) <= 60 else None)
            for z in held_to:
                axes.plot(x, z, linestyle="--", linewidth=1, color=line.get_color())
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log" if log == "xy" else "linear")
            ticks = sorted({float(place) for x, *_ in lines.values() for place in x})
            axes.set_xticks(ticks, [f"{place:g}" for place in ticks])
            axes.minorticks_off()
        axes.legend(fontsize=7 if len(lines) <= COLOURS else 5)
    save_figure(figure, path)


def coloured(levels: np.ndarray) -> np.ndarray:
    """Numbers in [-1, 1], of any shape, as colours from black to pale yellow: uint8 (*shape, 3)."""
    colours: np.ndarray = colormaps["magma"](np.clip((levels + 1) / 2, 0, 1), bytes=True)
    return colours[..., :3]


def sounds(amplitudes: np.ndarray, spectrograms: np.ndarray, rate: int, path: str | Path) -> None:
    """Waveforms (N, L) in [-1, 1] at `rate` Hz, each above its spectrogram, four abreast.

    Spectrograms are pictures, uint8 (N, bands, frames, 3).
    """
    columns = min(4, len(amplitudes))
    lines = math.ceil(len(amplitudes) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.4 * lines))
    panels = figure.subplots(2 * lines, columns, squeeze=False, gridspec_kw={"height_ratios": [1, 2] * lines})
    for axes in panels.flat:
        axes.set_axis_off()
    time = np.arange(amplitudes.shape[1]) / rate
    for number, (wave, spectrogram) in enumerate(zip(amplitudes, spectrograms, strict=True)):
        above, below = panels[2 * (number // columns) :, number % columns][:2]
        above.plot(time, wave, linewidth=0.4)
        above.set(xlim=(0, len(wave) / rate), ylim=(-1, 1))
        below.imshow(spectrogram, aspect="auto")
    save_figure(figure, path)


AROUND = [(side * far, up) for far in (8, 16, 30, 46) for up in (0, 11, -11, 22, -22, 33, -33) for side in (1, -1)]
"""Where a name may be, in points from what it names, the best first; the first two need no line."""


def plain_logs(axes: Axes) -> None:
    """Logarithmic axes with ticks at 1, 2 and 5, written without powers."""
    axes.loglog()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")


def name_points(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Writes a name beside each point, where it covers no point, and neither it nor a thin line to the point crosses
    another name.

    Scales and limits must be set. Where no place is free, the name stands at the first.
    """
    figure = axes.figure
    assert isinstance(figure, Figure), "not of a part of a figure"
    figure.draw_without_rendering()
    places = axes.transData.transform(np.array(points))
    taken = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    written: list[Bbox] = []
    lines: list[Route] = []
    for point, start, name in zip(points, places, names, strict=True):

        def write(beside: tuple[float, float], point: tuple[float, float] = point, name: str = name) -> Annotation:
            side: Literal["left", "right"] = "left" if beside[0] > 0 else "right"
            from_edge = {"relpos": (float(beside[0] < 0), 0.5), "shrinkA": 0}
            line = None if beside in AROUND[:2] else {"arrowstyle": "-", "lw": 0.5, "color": "gray", **from_edge}
            return axes.annotate(
                name, point, beside, textcoords="offset points", ha=side, va="center", fontsize=8, arrowprops=line
            )

        for beside in AROUND:
            text = write(beside)
            text.get_window_extent()  # puts it into its place
            box = Text.get_window_extent(text).padded(1)  # of the words alone, without the line
            end = box.x0 if beside[0] > 0 else box.x1, (box.y0 + box.y1) / 2
            line = Route(np.array([*start, *end]).reshape(2, 2))
            crossed = any(map(line.intersects_bbox, written)) or any(one.intersects_bbox(box) for one in lines)
            inside = axes.bbox.count_contains(box.corners()) == 4
            if inside and not crossed and not box.count_overlaps([*taken, *written]):
                break
            text.remove()
        else:
            box = Text.get_window_extent(write(AROUND[0]))
            line = Route(box.corners()[:1])
        written.append(box)
        lines.append(line)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, atomically."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
