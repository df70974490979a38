"""The page of a lecture on a model of sounds: its pictures, and players of what they show of both processes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from undiffuse.domains.sounds import Sounds
from undiffuse.model import Model

PAGE = "explain.html"
COLUMNS = 5
Heard = tuple[str, np.ndarray, list[str]]
"""A heading, rows int16 (N, L), and a caption for each of them."""


def write_players(
    model: Model, path: Path, pictures: Sequence[tuple[Path, str]], heard: Sequence[Heard]
) -> tuple[Path, str]:
    """Writes the page; returns its path and a caption."""
    from undiffuse.evaluation.page import Page, Room, clips, write_page

    domain = model.domain
    assert isinstance(domain, Sounds)
    heading = f"How {model.name} makes sounds"
    page = Page(
        title=heading,
        heading=heading,
        summary=[f"{domain.seconds:g} s at {domain.rate:,} Hz; spectrograms have low frequencies at the bottom"],
        headings=[],
        rows=[],
        notes=[],
        figures=pictures,
        conditions={"model": model.name, "fingerprint": model.fingerprint},
        rooms=[Room(heading, clips(domain, rows, captions), COLUMNS) for heading, rows, captions in heard],
    )
    write_page(page, path)
    return path, "All of these, with players of both processes."
