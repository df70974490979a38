"""`undiffuse data list`, `undiffuse data show` and `undiffuse data make`."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from undiffuse.cli import complete
from undiffuse.cli.console import FORCE, check_options, say
from undiffuse.errors import UsageError
from undiffuse.progress import bar

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.data import ImageSet
    from undiffuse.domains.pictures import Pictures
    from undiffuse.domains.sounds import Sounds

SHOWN = 4  # captions
COLUMNS = 16  # of a contact sheet with a row for each class
EXCERPT = 400  # characters
MOST = 100_000  # pictures to make, far fewer than there are different ones

app = typer.Typer(
    help="List data sets, show what is in one, and draw one.",
    epilog="Examples: undiffuse data list; undiffuse data show emoji",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_() -> None:
    """List the named data sets, and how to get those that are not installed.

    \b
    Example:
      undiffuse data list
    """
    from undiffuse.data import catalogue
    from undiffuse.data.corpora import CORPORA
    from undiffuse.data.speech import SPEECH
    from undiffuse.names import format_shape

    for entry in catalogue():
        say(f"{entry.name:14} {entry.count:>6} of {format_shape(entry.shape):9} {entry.summary} ({entry.licence})")
        if not entry.available:
            say(f"{'':14} not installed; get it with: {entry.how_to_get}")
    for text in CORPORA.values():
        say(f"{text.name:14} {text.characters:,} characters: {text.summary} ({text.licence})")
        if not text.find():
            say(f"{'':14} not installed; get it with: {text.how_to_get}")
    for sounds in SPEECH.values():
        say(f"{sounds.name:14} {sounds.count:>6} sounds at {sounds.rate:,} Hz: {sounds.summary} ({sounds.licence})")
        if not sounds.find():
            say(f"{'':14} not installed; get it with: {sounds.how_to_get}")
    say(
        "Your own: a folder of images (subfolders are classes, captions.txt describes them), .npz, .npy, .parquet, "
        "or a hub name such as owner/name; a text: .txt, .jsonl, .parquet or a folder of them; "
        "sounds: .wav, .flac, .mp3 or a folder of them."
    )


@app.command("show")
def show(
    context: typer.Context,
    name: str = typer.Argument(
        ..., help="A name from `undiffuse data list`, or data of your own.", autocompletion=complete.data
    ),
    split: str = typer.Option("train", help="train, test or all.", autocompletion=complete.splits),
    size: int = typer.Option(None, help="Side of the images in pixels."),
    skip_corrupt: bool = typer.Option(False, "--skip-corrupt", help="Skip unreadable files."),
    out: Path = typer.Option(
        None, "--out", "-o", help="The contact sheet, .png [NAME.png]; of sounds also a page with players, .html."
    ),
    force: bool = FORCE,
) -> None:
    """Describe a data set, and draw a contact sheet with a row for each class, or print a piece of a text.

    \b
    Examples:
      undiffuse data show emoji
      undiffuse data show ~/pictures --size 64 --out pictures.png
      undiffuse data show shakespeare
      undiffuse data show digits-spoken --out digits.html
    """
    from functools import partial

    from undiffuse import output
    from undiffuse.cli import sounds
    from undiffuse.data import load
    from undiffuse.data.sounds import SoundSet, is_sounds, load_sounds
    from undiffuse.data.textfiles import is_text
    from undiffuse.domains import domain_of
    from undiffuse.domains.pictures import Pictures
    from undiffuse.domains.sounds import Sounds
    from undiffuse.names import format_shape
    from undiffuse.plots import save_grid

    if is_text(name):
        check_options(context, ("name", "split"), "texts")
        _show_text(name, split)
        return
    heard = is_sounds(name)
    output.claim({"--out": out}, force, {"--out": [".png", ".html"] if heard else [".png"]})
    if out and _inside(out, name):
        raise UsageError(f"--out {out} lies inside {name} and would become one of its pictures: choose another place")
    if heard and size:
        raise UsageError(f"--size is for pictures, and {name} holds sounds: leave it out")

    with bar("reading") as tick:
        read = load_sounds if heard else partial(load, size=size)
        data = read(name, split, skip_corrupt=skip_corrupt, progress=tick)
    domain = domain_of(data)
    assert isinstance(domain, Pictures | Sounds)
    of = f"{domain.seconds:g} s at {domain.rate:,} Hz" if isinstance(domain, Sounds) else format_shape(data.shape)
    lines = [f"{data.name} ({data.split}): {len(data)} {domain.noun} of {of}; licence: {data.licence}"]
    lines += [f"fingerprint {data.fingerprint[:16]}", *_captions(data)]
    if isinstance(data, SoundSet):
        lines += sounds.remarks(data)
    for line in lines:
        say(line)
    classes = _classes(data)
    for title, count, _ in classes if data.classes else []:
        say(f"  {count:6} {title}")
    path = out or output.fresh(Path(f"{output.name_of(name)}.png"))
    if _inside(path, name):
        say("no contact sheet, since it would lie among the pictures: --out PLACE/sheet.png writes one elsewhere")
    elif isinstance(data, SoundSet) and path.suffix.lower() == ".html":
        place = output.put(path, partial(sounds.page, data, lines, classes), force)
        say(f"a page with players: {place}")
    else:
        columns = COLUMNS if data.classes else 8
        images = _sheet(domain, data, [chosen for _, _, chosen in classes])
        say(f"contact sheet: {output.put(path, lambda place: save_grid(images, place, columns), force)}")


def _classes(data: "ImageSet") -> "list[tuple[str, int, np.ndarray]]":
    """For each class its name, the number of its rows and the indices of `COLUMNS` of them, at even distances; without
    classes, "" and 64 of all rows."""
    import numpy as np

    def spread(members: np.ndarray, count: int) -> np.ndarray:
        return members[:: max(1, len(members) // count)][:count]

    if data.labels is None or not data.classes:
        return [("", len(data), spread(np.arange(len(data)), 64))]
    found = [(title, np.flatnonzero(data.labels == label)) for label, title in enumerate(data.classes)]
    return [(title, len(members), spread(members, COLUMNS)) for title, members in found]


def _sheet(domain: "Pictures | Sounds", data: "ImageSet", classes: "list[np.ndarray]") -> "np.ndarray":
    """Pictures of the rows chosen of each class, filled up with white to `COLUMNS`; without classes, of all chosen."""
    import numpy as np

    if not data.classes:
        return domain.pictures(data.images[classes[0]])
    blank = np.full((COLUMNS, *domain.pictures(data.images[:1]).shape[1:]), 255, np.uint8)
    sheet = []
    for chosen in classes:
        pictures = domain.pictures(data.images[chosen]) if len(chosen) else blank[:0]
        sheet += [pictures, blank[len(pictures) :]]
    return np.concatenate(sheet)


@app.command("make")
def make(
    name: str = typer.Argument(..., help="What to draw: avatars.", autocompletion=complete.makeable),
    n: int = typer.Option(12_000, "-n", min=1, max=MOST, help="Number of pictures."),
    size: int = typer.Option(32, min=8, max=512, help="Side of the pictures in pixels."),
    seed: int = typer.Option(0, min=0, help="Other pictures with each seed."),
    out: Path = typer.Option(None, "--out", "-o", help="Where to write them, .npz [NAME.npz]."),
    force: bool = FORCE,
) -> None:
    """Draw a data set with captions and attributes; the same options give the same file.

    \b
    Example:
      undiffuse data make avatars -n 20000 --size 64 --out faces.npz
    """
    import numpy as np

    from undiffuse import output
    from undiffuse.data.making import MAKERS
    from undiffuse.names import format_shape, one_of

    one_of("data set to make", name, MAKERS)
    output.claim({"--out": out}, force, {"--out": [".npz"]})
    output.check_memory(n, (size, size, 3))
    with bar("drawing", n) as tick:
        arrays = MAKERS[name](n, size, seed, tick)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    place = output.put(out or output.fresh(Path(f"{name}.npz")), write, force)
    train, test = len(arrays["x_train"]), len(arrays["x_test"])
    say(f"{train} + {test} pictures of {format_shape((size, size, 3))}, to train and to test: {place}")


def _show_text(name: str, split: str) -> None:
    """Describes a text, and prints a piece of it."""
    from undiffuse.data.remarks import readable
    from undiffuse.data.texts import load_text

    with bar("reading") as tick:
        data = load_text(name, split, length=1, progress=tick)
    say(f"{data.name} ({split}): {data.characters:,} characters, {data.tokenizer.size} different; {data.licence}")
    say(f"fingerprint {data.fingerprint[:16]}")
    middle = len(data.flat) // 2
    for line in data.tokenizer.decode(data.flat[middle : middle + EXCERPT]).split("\n"):
        say(f"  {readable(line)}")


def _captions(data: "ImageSet") -> list[str]:
    """How many images have captions, and a few of them."""
    from undiffuse.names import cut

    described = [index for index, captions in enumerate(data.captions) if captions]
    if not described:
        return []
    counts = {len(data.captions[index]) for index in described}
    each = " to ".join(map(str, sorted({min(counts), max(counts)})))
    lines = [f"captions: {len(described)} of {len(data)} have {each} each, such as"]
    for index in described[:: max(1, len(described) // SHOWN)][:SHOWN]:
        title = cut(data.names[index], 30) if data.names else f"image {index}"
        lines.append(f"  {title}: {cut(data.captions[index][0])}")
    return lines


def _inside(path: Path, source: str) -> bool:
    return Path(source).is_dir() and path.resolve().is_relative_to(Path(source).resolve())
