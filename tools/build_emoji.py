"""Builds src/undiffuse/data/assets/emoji.npz, the data set that ships inside the package.

    sudo apt-get install fonts-noto-color-emoji
    npm install --no-save unicode-emoji-json@0.9.0 cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
    python tools/build_emoji.py node_modules

The pictures are the font's own 136x128 bitmaps, padded to a square, laid on white and scaled to 32x32 with
antialiasing (Hamming does not ring, so the white stays white). Which emoji there are, their names (Unicode CLDR),
their groups and their order come from unicode-emoji-json; the captions are the name, and CLDR's English keywords.
Skin-tone variants are left out, and so are pictures equal to an earlier one (several flags are drawn alike): a copy in
both splits would make a test score look better than it is. The same inputs give the same bytes.

Needs fontTools (`pip install undiffuse[emoji-build]`).
"""

import argparse
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image

from undiffuse.files import atomic_file

ROOT = Path(__file__).resolve().parent.parent
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ASSET = ROOT / "src/undiffuse/data/assets/emoji.npz"
SIZE = 32
MOST_WORDS = 16  # of a caption, as a model reads them
WORD = re.compile(r"[^\W_]+")
SKIN_TONES = frozenset("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")
EMOJI_PRESENTATION = "\ufe0f"  # asks for colour; this font is all colour and its ligatures leave it out

# Drawn like a better-known emoji that comes later in the list, so they must not be the one that is kept.
BORROWED_PICTURES = frozenset(
    {
        "family man, man, boy",
        "family man, man, boy, boy",
        "family man, boy",
        "family man, boy, boy",
        "flag Bouvet Island",
        "flag Ceuta & Melilla",
        "flag Clipperton Island",
        "flag Diego Garcia",
        "flag U.S. Outlying Islands",
    }
)

Glyph = str


def ligatures(font: TTFont) -> dict[tuple[Glyph, ...], Glyph]:
    """Every glyph sequence the font draws as one glyph: flags, keycaps, families, professions."""
    return {
        (first, *ligature.Component): ligature.LigGlyph
        for lookup in font["GSUB"].table.LookupList.Lookup
        for table in lookup.SubTable
        if hasattr(table, "ligatures")
        for first, group in table.ligatures.items()
        for ligature in group
    }


def keywords(modules: Path) -> dict[str, list[str]]:
    """CLDR's English keywords of each emoji, which is written without EMOJI_PRESENTATION."""
    found: dict[str, list[str]] = {}
    for package, kind in (("full", "annotations"), ("derived-full", "annotationsDerived")):
        text = (modules / f"cldr-annotations-{package}" / kind / "en" / "annotations.json").read_text(encoding="utf-8")
        found |= {emoji: facts.get("default", []) for emoji, facts in json.loads(text)[kind]["annotations"].items()}
    return found


def captions(name: str, words: list[str]) -> list[str]:
    """The name of an emoji, and its other keywords as lists of tags, each of at most MOST_WORDS words."""
    lists: list[list[str]] = [[]]
    for word in words:
        if word.casefold() == name.casefold():
            continue
        if len(WORD.findall(" ".join([*lists[-1], word]))) > MOST_WORDS:
            lists.append([])
        lists[-1].append(word)
    return [name, *(", ".join(tags) for tags in lists if tags)]


def pictures(font: TTFont, emoji: dict[str, dict[str, str]]) -> Iterator[tuple[Image.Image, str, str, str]]:
    """Yields (picture, emoji, name, group) for each emoji that the font draws, in the order of `emoji`."""
    glyph_of = font.getBestCmap()
    joined = ligatures(font)
    bitmaps = font["CBDT"].strikeData[0]
    for text, facts in emoji.items():
        if SKIN_TONES & set(text) or facts["name"] in BORROWED_PICTURES:
            continue
        sequence = tuple(glyph_of.get(ord(character)) for character in text if character != EMOJI_PRESENTATION)
        glyph = sequence[0] if len(sequence) == 1 else joined.get(sequence)
        if glyph in bitmaps:
            yield Image.open(io.BytesIO(bitmaps[glyph].imageData)), text, facts["name"], facts["group"]


def square_on_white(picture: Image.Image) -> np.ndarray:
    """Pads to a square, composites on white, then scales: uint8 (SIZE, SIZE, 3)."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.HAMMING))


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed .npz whose bytes depend on the arrays alone (no time stamps)."""
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            stampless = zipfile.ZipInfo(f"{name}.npy")
            file.writestr(stampless, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def build(font_path: Path, modules: Path, out: Path) -> None:
    """Builds the asset at `out` and prints what is in it."""
    emoji = json.loads((modules / "unicode-emoji-json" / "data-by-emoji.json").read_text(encoding="utf-8"))
    words_of = keywords(modules)
    classes = list(dict.fromkeys(facts["group"] for facts in emoji.values()))
    images, labels, names, said, seen = [], [], [], [], set()
    drawn = 0
    for picture, text, name, group in pictures(TTFont(font_path), emoji):
        drawn += 1
        image = square_on_white(picture)
        if image.tobytes() in seen:
            continue
        seen.add(image.tobytes())
        images.append(image)
        labels.append(classes.index(group))
        names.append(name)
        said.append(captions(name, words_of[text.replace(EMOJI_PRESENTATION, "")]))
    save(
        out,
        {
            "images": np.stack(images),
            "labels": np.array(labels, dtype=np.uint8),
            "names": np.array(names),
            "classes": np.array(classes),
            "captions": np.frombuffer(json.dumps(said, ensure_ascii=False).encode(), np.uint8),
        },
    )
    print(f"{out}: {len(images)} emoji, {out.stat().st_size / 1e6:.2f} MB")
    print(f"  {len(emoji)} listed, {drawn} considered, {drawn - len(images)} of them drawn like an earlier one")
    for label, group in enumerate(classes):
        print(f"  {labels.count(label):4d} {group}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the embedded emoji data set.")
    parser.add_argument("modules", type=Path, help="the folder node_modules with the three packages")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf with CBDT bitmaps")
    parser.add_argument("--out", type=Path, default=ASSET)
    options = parser.parse_args()
    build(options.font, options.modules, options.out)


if __name__ == "__main__":
    main()
