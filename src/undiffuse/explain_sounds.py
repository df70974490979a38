"""The page of a lecture on a model of sounds: its pictures, and players of what they show of both processes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from undiffuse.domains.sounds import FULL_SCALE, Sounds
from undiffuse.model import Model

PAGE = "explain.html"
COLUMNS = 5
LOUDEST = 10 ** (-23 / 20) * FULL_SCALE
"""The root mean square that data has where it is loud (docs/data.md), in steps of 16 bits."""
Heard = tuple[str, np.ndarray, list[str]]
"""A heading, rows int16 (N, L), and a caption for each of them."""


def write_players(
    model: Model, path: Path, pictures: Sequence[tuple[Path, str]], heard: Sequence[Heard]
) -> tuple[Path, str]:
    """Writes the page; returns its path and a caption. What is mostly noise is played more softly than it is."""
    from undiffuse.evaluation.page import Page, Room, clips, write_page

    domain = model.domain
    assert isinstance(domain, Sounds)
    heading = f"How {model.name} makes sounds"
    page = Page(
        title=heading,
        heading=heading,
        summary=[
            f"{domain.seconds:g} s at {domain.rate:,} Hz; spectrograms have low frequencies at the bottom. In the "
            "players, what is louder than speech is made as loud as that."
        ],
        headings=[],
        rows=[],
        notes=[],
        figures=pictures,
        conditions={"model": model.name, "fingerprint": model.fingerprint},
        rooms=[Room(heading, clips(domain, _softened(rows), captions), COLUMNS) for heading, rows, captions in heard],
    )
    write_page(page, path)
    return path, "All of these, with players of both processes."


def _softened(rows: np.ndarray) -> np.ndarray:
    """int16 (N, L), those above `LOUDEST` brought down to it."""
    loudness = np.sqrt(np.square(rows, dtype=np.float64).mean(1, keepdims=True))
    return np.rint(rows * np.minimum(1, LOUDEST / np.maximum(loudness, 1))).astype(np.int16)
