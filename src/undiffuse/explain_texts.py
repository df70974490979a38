"""Pictures of the two processes for a model of texts: what noise takes from a text, and what the model writes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from undiffuse.data.tokens import Tokenizer
from undiffuse.model import Model
from undiffuse.plots import save_figure
from undiffuse.randomness import keyed_draws
from undiffuse.registry import TOKEN_SAMPLERS
from undiffuse.sampling import trajectory
from undiffuse.writing import Writing, process_of, texts_only

SHOWN = 96
"""Tokens of a row."""
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
ROWS = 9
HIDDEN, PLAIN, NEW = "#b8b8b8", "#222222", "#c8201c"
MASK = "·"


def draw(
    model: Model, folder: Path, text: np.ndarray, seed: int, tick: Callable[[int], None]
) -> Iterator[tuple[Path, str]]:
    """Writes 1-forward.png and 2-reverse.png to `folder`; yields each with a caption.

    `text`: a window of data, whose tokens the forward process takes away.
    """
    tokenizer, process = texts_only(model), process_of(model)
    x0 = torch.from_numpy(text[None, :].astype(np.int64)).to(model.device)
    draws = keyed_draws(seed, [0])
    forward = [process.corrupt(x0, t, draws(0))[0].cpu().numpy() for t in TIMES]
    labels = [f"{t:.0%} noise" for t in TIMES]
    path = folder / "1-forward.png"
    _strip(path, "The forward process: red is what noise has just taken", forward, labels, tokenizer, process.mask)
    tick(1)
    yield path, "The same text at growing noise: with t, a share t of the tokens has lost what it was"

    writing = Writing("ancestral", x0.shape[1], seed=seed)
    start = process.prior(x0).sample(draws(0))
    step, grid = TOKEN_SAMPLERS["ancestral"].step, writing.times(process, x0.shape[1])
    states = []
    with torch.no_grad():
        for state in trajectory(model.denoiser.bind(model.condition([0])), process, grid, step, start, draws):
            states.append(state.x[0].cpu().numpy())
            tick(1)
    picked = np.linspace(0, len(states) - 1, ROWS).round().astype(int)
    labels = [f"step {number}" for number in picked]
    path = folder / "2-reverse.png"
    rows = [states[number] for number in picked]
    _strip(path, "The reverse process: red is what the model has just written", rows, labels, tokenizer, process.mask)
    yield path, f"A text of the model in {len(states) - 1} steps from noise, in no order"


def work(model: Model) -> int:
    """How often `draw` ticks."""
    return model.data.shape[0] + 2


def _strip(
    path: Path, title: str, rows: Sequence[np.ndarray], labels: Sequence[str], tokenizer: Tokenizer, mask: int | None
) -> None:
    """Rows of tokens in columns: hidden ones grey, those that differ from the row above red."""
    from matplotlib.figure import Figure

    shown = min(SHOWN, len(rows[0]))
    cells = [[MASK if token == mask else _cell(tokenizer, token) for token in row[:shown]] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(shown)]
    starts = np.concatenate([[0], np.cumsum(widths)])
    figure = Figure(figsize=(1.4 + 0.083 * starts[-1], 0.7 + 0.26 * len(rows)))
    axes = figure.subplots()
    axes.set(xlim=(-14, starts[-1]), ylim=(len(rows) - 0.3, -1))
    axes.axis("off")
    axes.set_title(title, fontsize=10)
    for number, (row, cell, label) in enumerate(zip(rows, cells, labels, strict=True)):
        axes.text(-1, number, label, ha="right", va="center", fontsize=8, color=PLAIN)
        for place in range(shown):
            new = number > 0 and row[place] != rows[number - 1][place]
            colour = NEW if new else HIDDEN if row[place] == mask else PLAIN
            axes.text(starts[place], number, cell[place], va="center", fontsize=8, family="monospace", color=colour)
    save_figure(figure, path)


def _cell(tokenizer: Tokenizer, token: int) -> str:
    """A token as it can be printed in a line."""
    text = tokenizer.decode(np.array([token]))
    return "".join(one if one.isprintable() else "\u21b5" if one == "\n" else "?" for one in text)
