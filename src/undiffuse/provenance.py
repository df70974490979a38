"""Where a picture came from: the command, the model and the files that made it, stored in the file as text.

Nothing in it depends on the clock or the folder, so the same command makes the same bytes. Imports no torch.
"""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from zipfile import ZipFile

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from undiffuse import __version__
from undiffuse.data.html import script_of, with_script
from undiffuse.data.png import SIGNATURE, text_of, with_text
from undiffuse.data.remarks import readable, warn
from undiffuse.data.wav import comment_of, with_comment
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import parse_json
from undiffuse.names import cut, fault

if TYPE_CHECKING:
    from undiffuse.model import Model

KEYWORD = "undiffuse"
FORMAT = 1
LONGEST = 65_535  # bytes: what the comment of a zip file can hold
KINDS = {".png": SIGNATURE, ".npz": b"PK\3\4", ".json": b'{"undiff', ".wav": b"RIFF", ".html": b"<!doctyp"}
"""The files that hold a recipe, and how they begin: pictures, arrays, sounds, pages and, written with it, texts."""

Words = Annotated[str, Field(max_length=LONGEST, strict=True)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", strict=True)]
Whole = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


@dataclass(frozen=True)
class Provenance:
    """What a file was made from.

    Attributes:
        command: as typed, quoted for a shell.
        version: of undiffuse.
        seed: of the noise.
        model: its name, as typed.
        fingerprint: of the model, with its guide (`Model.fingerprint`).
        sources: the files that were read, as typed -> sha256 of their bytes.
        machine: what else decides the last bit: the engine, the device, threads, versions.
        sample: the number of the sample, in a folder of samples.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    command: Words
    version: Words
    seed: Whole
    model: Words
    fingerprint: Hash
    sources: dict[Words, Hash]
    machine: dict[Words, Words]
    sample: Whole | None = None

    def text(self, sample: int | None = None) -> str:
        """As JSON in ASCII: for the sample of this number in a folder, or for a file with all of them."""
        facts = {"format": FORMAT, **asdict(replace(self, sample=sample))}
        return json.dumps({key: value for key, value in facts.items() if value is not None})

    def lines(self) -> list[str]:
        """For people: a line for the command, and one for each kind of fact."""
        versions = ", ".join(f"{name} {value}" for name, value in {"undiffuse": self.version, **self.machine}.items())
        sample = [] if self.sample is None else [f"sample   {self.sample}"]
        sources = [f"source   {path}, sha256 {digest}" for path, digest in self.sources.items()]
        facts = [f"model    {self.model}, fingerprint {self.fingerprint}", f"seed     {self.seed}", *sample, *sources]
        return [readable(line) for line in (self.command, *facts, f"made by  {versions}")]

    def check(self, now: "Provenance") -> None:
        """Raises UsageError if the model or a file is not what it was: the same command would make another picture."""
        if now.fingerprint != self.fingerprint:
            raise UsageError(
                f"the model {readable(cut(self.model))} is another one now: its fingerprint is {now.fingerprint[:12]} "
                f"and was {self.fingerprint[:12]}. Name the checkpoint that drew the picture, or --force runs the "
                "command with this one"
            )
        for path in {**self.sources, **now.sources}:
            if now.sources.get(path) != self.sources.get(path):
                raise UsageError(
                    f"{readable(path)} is not the file that it was: bring that one back, or --force runs the command "
                    "with this one"
                )

    def differences(self, now: "Provenance") -> list[str]:
        """What is not as it was, in a few words each."""
        pairs = {"version": (self.version, now.version), "fingerprint": (self.fingerprint[:12], now.fingerprint[:12])}
        for mine, others in ((self.machine, now.machine), (self.sources, now.sources)):
            pairs |= {key: (mine.get(key, "none")[:40], others.get(key, "none")[:40]) for key in {**mine, **others}}
        return [f"{readable(key)} {readable(b)} (was {readable(a)})" for key, (a, b) in pairs.items() if a != b]


_READER = TypeAdapter(Provenance)


def provenance_of(
    words: Sequence[str], model: "Model", seed: int, sources: Iterable[str | os.PathLike[str]] = ()
) -> Provenance:
    """Of what the command `words`, the first of them "undiffuse", makes with `model` from the files `sources`.

    Raises UsageError for a source that is not there, UndiffuseError for one that cannot be read.
    """
    return Provenance(
        command=shlex.join(map(readable, words)),
        version=__version__,
        seed=seed,
        model=readable(model.name),
        fingerprint=model.fingerprint,
        sources={readable(os.fspath(path)): sha256_of(path) for path in sources},
        machine=_machine(model),
    )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """sha256 of a file's bytes, hexadecimal. Raises UsageError if there is no such file, UndiffuseError if it cannot be
    read."""
    if not os.path.isfile(path):  # a device might never end
        reason = ": there is no such file" if not os.path.exists(path) else " is no regular file"
        raise UsageError(readable(os.fspath(path)) + (" is a folder: name files" if os.path.isdir(path) else reason))
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UndiffuseError(f"cannot read {readable(os.fspath(path))}: {error.strerror or error}") from None


def _machine(model: "Model") -> dict[str, str]:
    """What decides the last bit of the samples beside the model and the command."""
    from importlib.metadata import version

    import torch

    facts = {"engine": model.engine, "device": str(model.device), "threads": str(torch.get_num_threads())}
    facts |= {"processes": os.environ.get("WORLD_SIZE", "1"), "cpu": torch.backends.cpu.get_cpu_capability()}
    if model.device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(model.device)
    packages = ["torch", "numpy", "pillow", *(["onnxruntime"] if model.engine == "onnxruntime" else [])]
    return facts | {package: version(package) for package in packages}


def inscribe(path: Path, text: str) -> None:
    """Puts `text` into a finished file: into a PNG, a WAV or a page, or as its comment into a zip such as .npz; others
    cannot hold one.

    A text that is too long, of thousands of sources, is left out with a warning. The file is not flushed to disk, which
    `undiffuse.output` does before it moves the file to its place.
    """
    kind = kind_of(path)
    if not kind:
        return
    if len(text) > LONGEST:
        warn(f"the recipe is left out: it takes {len(text):,} bytes, more than the {LONGEST:,} that a file can hold")
    elif kind == ".png":
        with path.open("r+b") as file:  # it only grows; to truncate it would make some file systems flush it
            longer = with_text(file.read(), KEYWORD, text)
            file.seek(0)
            file.write(longer)
    elif kind == ".wav":
        with path.open("r+b") as file:
            with_comment(file, text)
    elif kind == ".html":
        with path.open("r+b") as file:
            with_script(file, text)
    else:
        with ZipFile(path, "a") as archive:
            archive.comment = text.encode()


def read_provenance(path: Path) -> Provenance:
    """Of a .png, .npz, .wav, .html or .json file, or of the first sample in a folder.

    Nothing is unpacked; of all but .json at most `LONGEST` bytes are parsed. Raises UsageError for a file that has
    none, UndiffuseError for one that is damaged.
    """
    shown = readable(str(path))
    if path.is_dir():
        path = next((one for one in sorted(path.iterdir()) if re.fullmatch(r"\d{6,}\.(png|wav)", one.name)), path)
        if path.is_dir():
            raise UsageError(f"the folder {shown} has no samples in it (000000.png or .wav ...): name a file")
    try:
        text = _text(path)
    except FileNotFoundError:
        raise UsageError(f"{shown}: there is no such file") from None
    except Exception as error:  # a broken zip makes its reader raise whatever it meets
        raise UndiffuseError(f"cannot read the recipe of {shown}: {readable(cut(str(error), 200))}") from None
    if text is None:
        raise UsageError(
            f"{shown} carries no recipe: .png, .npz, .wav, .html and .json files of undiffuse sample and edit do, "
            "unless another program has saved them since"
        )
    return _parsed(text, f"the recipe of {shown} is damaged")


def kind_of(path: Path) -> str:
    """One of `KINDS`, .npz for any zip, or "" for another, by the first bytes. Raises OSError."""
    with path.open("rb") as file:
        begins = file.read(len(SIGNATURE))
    return next((kind for kind, beginning in KINDS.items() if begins.startswith(beginning)), "")


def _text(path: Path) -> str | None:
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    if kind_of(path) == ".json":
        whole = parse_json(path.read_text("utf-8"), finite=True)
        return json.dumps(whole[KEYWORD])
    if kind_of(path) == ".npz":
        with ZipFile(path) as archive:
            return archive.comment.decode() or None
    with path.open("rb") as file:
        if kind_of(path) == ".html":
            return script_of(file, LONGEST)
        return comment_of(file, LONGEST) if kind_of(path) == ".wav" else text_of(file, KEYWORD, LONGEST)


def _parsed(text: str, damaged: str) -> Provenance:
    try:
        facts: Any = parse_json(text, finite=True)
        if not isinstance(facts, dict) or "format" not in facts:
            raise ValueError("it is not a table with a format")
        if facts.pop("format") != FORMAT:
            raise UndiffuseError(
                f"{damaged}, or of a newer version: this one reads format {FORMAT}. Upgrade undiffuse."
            )
        found = _READER.validate_python(facts)
        shlex.split(found.command)
        return found
    except RecursionError:
        raise UndiffuseError(f"{damaged}: it is nested too deeply") from None
    except ValueError as error:
        reason = fault(error) if isinstance(error, ValidationError) else str(error)
        raise UndiffuseError(f"{damaged}: {readable(cut(reason, 200))}") from None
