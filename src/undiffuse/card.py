"""Model cards and how models are found: everything that can be known without loading one.

The contents of `model.json` and `grids.json` are validated here, types and bounds. Imports no torch.
"""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from undiffuse.config import Config, read_config
from undiffuse.domains import domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_json
from undiffuse.names import cut, did_you_mean, fault, listed, shown
from undiffuse.registry import BUILT_IN, built_in

FORMAT = 1
SENTENCES = "sentences"
LARGEST_SIDE = 2**17  # pixels, or samples of a sound
MOST_NUMBERS = 2**28  # in one image: a gigabyte of float32

Words = Annotated[str, Field(max_length=10_000, strict=True)]
Whole = Annotated[int, Field(ge=0, le=10**15, strict=True)]
Amount = Annotated[float, Field(ge=0, le=1e15, strict=True, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True, allow_inf_nan=False)]
LogSNR = Annotated[float, Field(ge=-1000, le=1000, strict=True, allow_inf_nan=False)]


@dataclass(frozen=True)
class ConditionFacts:
    """The condition that a model takes: its `kind`, a name in `undiffuse.registry.CONDITIONS`, and the facts that this
    kind gives about the training rows (`undiffuse.conditions.Condition.facts`)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Words
    facts: dict[Words, Any]


def label_facts(share: Sequence[float]) -> ConditionFacts:
    """The facts of a model that takes labels, `share` being the classes' frequencies."""
    return ConditionFacts("labels", {"share": list(share)})


@dataclass(frozen=True)
class DataFacts:
    """The facts about the training data that a model needs: `domain` is its kind (undiffuse.domains.DOMAINS; older
    folders lack it), `shape` that of a stored row, (H, W, C) for pictures, `class_share` the class frequencies.

    `condition` is for a model whose condition is of another kind than labels; `classes` are the labels. With both, the
    condition is sentences.

    `tokens` is for texts: {"kind": a name in TOKENIZERS, "facts": those of the tokenizer}.

    `sound` is for sounds, what their domain is made from besides `shape` (undiffuse.domains.sounds): {"rate": Hz}, and
    for "mdct" {"rate": Hz, "scale": [one number per band]}.

    A class of share 0 had no training data; it is kept so that labels mean the same as in the data.
    Raises ValueError for facts that contradict each other.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Words
    shape: Annotated[tuple[Side, ...], Field(min_length=1, max_length=8)]
    count: Whole
    classes: tuple[Words, ...] = ()
    class_share: tuple[Share, ...] = ()
    licence: Words = ""
    fingerprint: Words = ""
    domain: Words = "pictures"
    condition: ConditionFacts | None = None
    tokens: dict[Words, Any] | None = None
    sound: dict[Words, Any] | None = None

    def __post_init__(self) -> None:
        try:
            domain = domain_of(self)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if math.prod(self.shape) > MOST_NUMBERS:
            raise ValueError(f"{domain.noun} of {shown(self.shape)} are larger than any model allows")
        if len(self.classes) != len(self.class_share):
            raise ValueError(f"there are {len(self.classes)} classes and {len(self.class_share)} shares of classes")
        if self.classes and abs(sum(self.class_share) - 1) > 1e-6:
            raise ValueError(f"class_share sums to {sum(self.class_share):g}, not 1")
        if self.classes and self.condition and self.condition.kind != SENTENCES:
            raise ValueError(f"there are both classes and a condition, {shown(self.condition.kind)}")

    @property
    def takes(self) -> ConditionFacts | None:
        """The condition that a model of this data takes, or None; with classes and sentences, both."""
        if not self.classes:
            return self.condition
        labels = label_facts(self.class_share)
        if self.condition is None:
            return labels
        return ConditionFacts("several", {"label": asdict(labels), "sentence": asdict(self.condition)})

    def to_json(self) -> dict[str, Any]:
        """The facts as in model.json: without what is None."""
        facts = asdict(self)
        return {key: value for key, value in facts.items() if value is not None}

    @property
    def learnt(self) -> tuple[str, ...]:
        """The classes with training data: those that can be sampled."""
        return tuple(name for name, share in zip(self.classes, self.class_share, strict=True) if share > 0)


class Training(BaseModel):
    """The fields of the training record that are used; there may be more."""

    steps: Whole | None = None
    images: Whole | None = None
    seconds: Amount | None = None
    processes: Whole | None = None
    threads: Whole | None = None
    device: Words = ""
    machine: Words = ""


class Bits(BaseModel):
    """Bits per dimension, with their standard error."""

    mean: Annotated[float, Field(ge=-1e6, le=1e6, strict=True)]
    error: Amount


class Measured(BaseModel):
    """Measurements of a model, made before it was shipped."""

    bits_per_dim: Bits
    n: Whole
    split: Words


class _Grid(BaseModel):
    log_snr: Annotated[tuple[LogSNR, ...], Field(max_length=1_000_000)]


class Card(NamedTuple):
    """The contents of `model.json`; `training` is the table in the file, with the fields of `Training` validated."""

    config: Config
    data: DataFacts
    training: dict[str, Any]
    measured: Measured | None = None


_DATA = TypeAdapter(DataFacts)
_GRIDS = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[a-z0-9+-]{1,40}:[1-9][0-9]{0,6}$")], _Grid])


def read_card(folder: Path, name: str = "model.json") -> Card:
    """`model.json` of a folder, or a file laid out like it. Raises UndiffuseError if it is invalid."""
    path = folder / name
    return as_card(read_json(path), path)  # imported configurations may hold infinities, as diffusers' schedulers do


def as_card(card: Any, path: Path) -> Card:
    """The contents of `model.json`, which `path` holds, validated. Raises as `read_card`."""
    within: tuple[str, ...] = ()
    try:
        if not isinstance(card, dict):
            raise ValueError("it is not a table")
        format = card.get("format")
        if type(format) is not int:
            raise ValueError(f"format = {shown(format)}")
        if format != FORMAT:
            raise UndiffuseError(
                f"{path}: model format {shown(format)}; this version reads {FORMAT}. Upgrade undiffuse."
            )
        config, within = read_config(card.get("config")), ("data",)
        data, within = _DATA.validate_python(card.get("data")), ("training",)
        Training.model_validate(card.get("training"))
        within = ("measured",)
        measured = None if card.get("measured") is None else Measured.model_validate(card["measured"])
    except ValidationError as error:
        raise _damaged(path, fault(error, *within)) from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return Card(config, data, card["training"], measured)


def _damaged(path: Path, reason: str) -> UndiffuseError:
    return UndiffuseError(f"{path} is damaged or not a model of undiffuse: {cut(reason, 250)}")


def read_run(run: Path) -> Config:
    """The configuration in `run.json` of a run folder. Raises UndiffuseError if it holds none."""
    path = run / "run.json"
    record = read_json(path, finite=True)
    try:
        return read_config(record.get("config") if isinstance(record, dict) else record)
    except ValueError as error:
        raise UndiffuseError(f"{path} is damaged or not of a run of undiffuse: {cut(str(error), 250)}") from None


def read_grids(folder: Path) -> dict[str, tuple[float, ...]]:
    """`grids.json` of a model folder, {} if there is none. Raises UndiffuseError if it is damaged."""
    path = folder / "grids.json"
    if not os.path.lexists(path):
        return {}
    try:
        grids = {key: grid.log_snr for key, grid in _GRIDS.validate_python(read_json(path, finite=True)).items()}
        for key, values in grids.items():
            if len(values) != int(key.partition(":")[2]) - 1 or any(a >= b for a, b in itertools.pairwise(values)):
                raise ValueError(f"{key} is not a grid of that many steps")
    except ValueError as error:
        reason = fault(error) if isinstance(error, ValidationError) else str(error)
        raise UndiffuseError(f"{path} is damaged ({cut(reason, 250)}): delete it, or run undiffuse tune") from None
    return grids


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(path.parent for path in run.glob("checkpoints/step-*/model.json"))


def recorded_source(run: Path) -> str:
    """Where the run in a folder last found its data: an absolute path that exists, else "".

    It is stored only in run.json, so a checkpoint taken out of its run reveals nothing about its machine.
    """
    try:
        source = read_json(run / "run.json")["data"]["source"]
    except (UndiffuseError, KeyError, TypeError):
        return ""
    return source if isinstance(source, str) and os.path.isabs(source) and os.path.exists(source) else ""


def _there(path: Path) -> bool:
    """Whether `path` exists, even as a broken link. Raises OSError if that cannot be determined."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def find(name: str | os.PathLike[str]) -> Path:
    """The model folder that `name` means: a run or model folder on disk, else a built-in name."""
    path = Path(name)
    try:
        if _there(path / "model.json"):
            return path
        if _there(path / "checkpoints"):
            os.listdir(path / "checkpoints")  # a glob silently skips what it may not read
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot look into {cut(str(path), 200)}: {getattr(error, 'strerror', error)}") from None
    if saved := checkpoints(path):
        return saved[-1]
    if str(name) in built_in():
        return BUILT_IN / str(name)
    if path.is_dir():
        raise UsageError(f"{path} is a folder without a model: no model.json and no checkpoint in it (yet)")
    hint = did_you_mean(str(name), built_in(), f"the built-in models are {listed(built_in()) or 'none'}.")
    raise UsageError(f"no model {shown(str(name))}: not a folder here, and not built in; {hint}")


def student_name(steps: int) -> str:
    """1-step, 2-steps: what a student of so many evaluations is called, after its teacher."""
    return f"{steps}-step{'s' * (steps > 1)}"


def student_of(name: str | os.PathLike[str], steps: int) -> str | None:
    """The name of the student of `steps` evaluations that comes with a model, in its folder; None if there is none.

    Raises UsageError as `find`.
    """
    find(name)
    student = f"{os.fspath(name)}/{student_name(steps)}"
    try:
        find(student)
    except UsageError:
        return None
    return student
