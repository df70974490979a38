"""A page as one HTML file with its figures and sounds embedded: to keep, to send or to put beside a paper."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from undiffuse.domains.sounds import Sounds
from undiffuse.files import atomic_file

_TEMPLATES = Environment(
    loader=PackageLoader("undiffuse.evaluation"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Clip:
    """A sound to play: its caption, a WAV file, and a picture of it as a PNG file."""

    caption: str
    sound: bytes
    picture: bytes


@dataclass(frozen=True)
class Room:
    """Clips under a heading ("" for none), in lines of `columns`."""

    heading: str
    clips: Sequence[Clip]
    columns: int = 4


@dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom. Texts are plain: the template escapes them.

    Attributes:
        title: the title of the window.
        summary: lines above the table.
        headings, rows: the table; without rows there is none.
        notes: lines below it.
        figures: PNG files, each with its caption or "".
        conditions: shown as JSON at the end.
        rooms: sounds, above the conditions.
    """

    title: str
    heading: str
    summary: Sequence[str]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    figures: Sequence[tuple[Path, str]]
    conditions: Any
    rooms: Sequence[Room] = ()


def clips(domain: Sounds, rows: np.ndarray, captions: Sequence[str]) -> list[Clip]:
    """Rows of sound, int16 (N, L), as clips with their spectrograms."""
    pictures = domain.pictures(rows)
    return [
        Clip(caption, domain.wav(row), _png(picture))
        for caption, row, picture in zip(captions, rows, pictures, strict=True)
    ]


def write_page(page: Page, path: Path) -> None:
    """Writes the page (templates/page.html.j2), atomically."""
    text = _TEMPLATES.get_template("page.html.j2").render(
        page=page,
        figures=[(_inline("image/png", file.read_bytes()), caption) for file, caption in page.figures],
        conditions=json.dumps(page.conditions, indent=1),
        inline=_inline,
    )
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _inline(kind: str, content: bytes) -> str:
    """A file of a kind such as "image/png" as a data URL."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def _png(picture: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a PNG file."""
    made = io.BytesIO()
    Image.fromarray(picture).save(made, format="PNG")
    return made.getvalue()
