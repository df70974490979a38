"""The pictures or sounds under a folder, and remarks on everything that looks like one but is not read."""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from undiffuse.data.remarks import kinds, readable, some
from undiffuse.errors import UndiffuseError, UsageError


def _endings(text: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in text.split())


READ = _endings(
    "png apng jpg jpeg jpe jfif mpo webp gif bmp dib tif tiff avif avifs jp2 j2k j2c jpc jpf jpx ppm pgm pbm pnm pfm "
    "tga icb vda vst pcx ico qoi sgi"
)
UNREAD = _endings(
    "heic heif hif jxl jxr hdp wdp flif bpg exr hdr psd psb xcf kra ora svg svgz ai eps emf wmf raw cr2 cr3 crw nef "
    "nrw dng arw srf sr2 orf rw2 raf pef ptx srw x3f 3fr fff iiq erf kdc dcr mrw mos rwl gpr dcm dicom dds icns cur "
    "fits fit fts xpm xbm ras rgb rgba bw pic djvu cin dpx heics heifs avci avcs jls jpeg2000 jph jhc pgx wbmp pam ktx"
)
SOUND = _endings("wav flac ogg oga mp3 aiff aif opus")
UNREAD_SOUND = _endings(
    "m4a aac wma amr awb ape wv mka caf au snd ra mid midi 3gp ac3 dts mpc tta w64 rf64 gsm weba dsf dff m4b aifc alac"
)
NO_PICTURE = _endings(  # not worth opening
    "txt json jsonl csv tsv xml yaml yml toml cfg ini md rst html htm log lock db py ipynb npy npz mat h5 pt pth pkl "
    "safetensors parquet zip gz tar pdf mp4 mov avi mkv webm"
)
TEXTS = _endings("txt csv tsv json jsonl")  # may hold captions
# Folders of thumbnails and leftovers of systems and network disks, in lower case; hidden ones are left out anyway.
NO_DATA = frozenset(
    {
        *("@eadir", "@tmp", "@__thumb", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
        *("system volume information", "thumbs", "thumbnails", "__macosx", "__pycache__"),
    }
)
WRITTEN_BY_A_RUN = frozenset({"checkpoints", "previews", "tensorboard"})
BEGINNINGS: tuple[bytes, ...] = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
BEGINNINGS += (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n")  # JPEG 2000
UNREAD_BEGINNINGS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n", b"8BPS\x00\x01")  # JPEG XL, Photoshop
BRANDS = {b"avif": True, b"avis": True} | dict.fromkeys(b"heic heix heim heis hevc hevx mif1 msf1".split(), False)

NAME = "pictures by their content but not by their name; give them an extension such as .png or .jpg"
LINK = "broken links"
RUN = "the output of undiffuse is not data"
LEAVINGS = "thumbnails or deleted files, judging by the folder's name; rename it if it is data"


@dataclass(frozen=True)
class Kind:
    """What is looked for.

    noun     "picture"
    target   the format to convert others to
    read     the endings of files that are read, in lower case
    unread   those of files that are of this kind and are not
    content  why a file with another ending, or none, is left out: as `_reason`
    """

    noun: str
    target: str
    read: frozenset[str]
    unread: frozenset[str]
    content: Callable[[Path], str | None]

    @property
    def unsupported(self) -> str:
        """Why a file of `unread` is left out."""
        return f"{self.noun}s in unsupported formats; convert them to {self.target} first"


@dataclass(frozen=True)
class Found:
    """Paths relative to the folder, sorted, and remarks.

    pictures  files to read
    unread    pictures in unsupported formats
    bare      folders with neither, at any depth
    texts     files that may hold captions
    kind      what `pictures` are
    """

    pictures: list[PurePosixPath]
    unread: list[PurePosixPath]
    bare: list[PurePosixPath]
    remarks: list[str]
    texts: list[PurePosixPath] = field(default_factory=list)
    kind: Kind = field(default_factory=lambda: PICTURES)


def walk(root: Path, kind: Kind | None = None) -> Found:
    """Finds everything under `root` that is a picture by its extension, or by its first bytes if it has none.

    Or a sound: `kind` is `PICTURES` (if None) or `SOUNDS`, which go by their extension alone.

    Hidden files and folders are left out, and so are, with a remark, folders of thumbnails (`NO_DATA`) and of runs of
    undiffuse. Links are followed, but not in loops. Raises UsageError if two names lead to one folder with pictures,
    and UndiffuseError if a folder cannot be read.
    """
    kind = kind or PICTURES
    pictures: list[PurePosixPath] = []
    texts: list[PurePosixPath] = []
    left_out: dict[str, list[PurePosixPath]] = defaultdict(list)
    twice: list[tuple[PurePosixPath, PurePosixPath]] = []
    folders = set()
    for folder, names in _folders(root, kind, left_out, twice):
        folders.add(folder)
        for name in names:
            reason = None if name.startswith(".") else _reason(root / folder / name, kind)
            if reason == "":
                pictures.append(folder / name)
            elif reason:
                left_out[reason].append(folder / name)
            elif not name.startswith(".") and PurePosixPath(name).suffix.lower() in TEXTS:
                texts.append(folder / name)
    for first, second in twice:
        if any(picture.is_relative_to(first) for picture in pictures):
            raise UsageError(
                f"{readable(str(root))}: {readable(str(first))} and {readable(str(second))} are one folder with two "
                f"names (one is a link), so its {kind.noun}s would count twice. Remove the link, or move it elsewhere."
            )
    remarks = []
    for reason, files in left_out.items():
        counts = f"{len(files)} files ({kinds(files)})" if reason in (kind.unsupported, NAME) else f"{len(files)}"
        remarks.append(f"{readable(str(root))}: left out {counts}: {reason}: {some(sorted(files))}")
    unread = sorted(left_out.get(kind.unsupported, ()))
    bare = folders.difference(*(file.parents for file in [*pictures, *unread]))
    return Found(sorted(pictures), unread, sorted(bare), remarks, sorted(texts), kind)


def holds_pictures(root: Path) -> bool:
    """Whether `walk` finds a picture, of a format that is read or not; looks no further than the first."""
    return any(
        _reason(root / folder / name, PICTURES) in ("", PICTURES.unsupported)
        for folder, names in _folders(root, PICTURES, defaultdict(list), [])
        for name in names
        if not name.startswith(".")
    )


def first_kind(root: Path, *kinds: Kind) -> Kind | None:
    """The kind of the first file under `root` that is of one of them by its ending; looks no further."""
    for _, names in _folders(root, kinds[0], defaultdict(list), []):
        for name in sorted(names):
            ending = PurePosixPath(name).suffix.lower()
            found = [kind for kind in kinds if ending in kind.read | kind.unread]
            if found and not name.startswith("."):
                return found[0]
    return None


def _folders(
    root: Path,
    kind: Kind,
    left_out: dict[str, list[PurePosixPath]],
    twice: list[tuple[PurePosixPath, PurePosixPath]],
) -> Iterator[tuple[PurePosixPath, list[str]]]:
    """Yields each folder that may hold data, relative to `root`, with the names of its files."""
    chains: dict[str, tuple[Path, ...]] = {}  # a folder as walked -> the real folders from the root down to it
    visited: dict[Path, PurePosixPath] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        real, above = Path(os.path.realpath(folder)), chains.get(os.path.dirname(folder), ())
        if any(one.is_relative_to(real) for one in above):  # a loop
            subfolders.clear()
            continue
        if real in visited:
            twice.append((visited[real], here))
            subfolders.clear()
            continue
        if is_run(subfolders, files):
            left_out[RUN].append(here)
            if here != PurePosixPath():
                subfolders.clear()
                continue
            subfolders[:] = set(subfolders) - WRITTEN_BY_A_RUN  # a run within its data folder: the rest is still data
        chains[folder], visited[real] = (*above, real), here
        dropped = [name for name in subfolders if name.lower() in NO_DATA]
        if leavings := [here / name for name in dropped if _holds(root / here / name, kind)]:
            left_out[LEAVINGS] += leavings
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in dropped)
        yield here, files


def _refuse(error: OSError) -> None:
    raise UndiffuseError(f"cannot read the folder {readable(str(error.filename))}: {error.strerror}") from error


def is_run(subfolders: list[str], files: list[str]) -> bool:
    """Whether a folder with these entries holds a run or a model of undiffuse."""
    run = "run.json" in files and ("metrics.jsonl" in files or not WRITTEN_BY_A_RUN.isdisjoint(subfolders))
    return run or {"model.json", "weights.safetensors"} <= set(files)


def _holds(folder: Path, kind: Kind) -> bool:
    return any(
        Path(name).suffix.lower() in kind.read for _, _, files in os.walk(folder) for name in files if name[0] != "."
    )


def _reason(path: Path, kind: Kind) -> str | None:
    """Why a file is left out: "" for one to read, None for one that is not of this kind."""
    ending = path.suffix.lower()
    if ending in kind.read:
        return ""
    return kind.unsupported if ending in kind.unread else kind.content(path)


def _picture_by_content(path: Path) -> str | None:
    kind = path.suffix.lower()
    if kind in NO_PICTURE:
        return None
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            begins = file.read(16)
    except OSError:
        return LINK if path.is_symlink() else ""  # reading it as a picture raises the error
    brand = begins[8:12] if begins[4:8] == b"ftyp" else b""
    if begins.startswith(BEGINNINGS) or (begins[:4], begins[8:12]) == (b"RIFF", b"WEBP") or BRANDS.get(brand):
        return NAME if kind else ""
    return PICTURES.unsupported if begins.startswith(UNREAD_BEGINNINGS) or brand in BRANDS else None


PICTURES: Kind = Kind("picture", "PNG", READ, UNREAD, _picture_by_content)
SOUNDS = Kind("sound", "FLAC", SOUND, UNREAD_SOUND, lambda path: None)
