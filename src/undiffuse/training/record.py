"""run.json: the settings a run began with, the facts about its data, and where on this machine that data is.

The content of the data decides whether a run can resume with it, not the spelling of its name: a folder may be given
by another path, from another working directory, or have moved.
"""

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from undiffuse.adapters import base_fingerprint
from undiffuse.bases import base_config
from undiffuse.card import DataFacts, checkpoints, find, read_card, read_run, recorded_source
from undiffuse.config import MACHINE_KEYS, Config, make_config, read_config
from undiffuse.data import ImageSet
from undiffuse.data.entries import OPENERS
from undiffuse.data.speech import SPEECH
from undiffuse.domains import domain_of
from undiffuse.errors import UndiffuseError, UsageError
from undiffuse.files import read_json, write_json
from undiffuse.model import Model, load
from undiffuse.training.transfer import Origin, as_origin

NAME = "run.json"
LOGS = (".log", ".txt", ".out", ".err")  # files that a shell or a cluster may have begun to write there


def located(source: str) -> str:
    """A data set's name, independent of the working directory: paths become absolute, other names stay as they are."""
    path = os.path.expanduser(source)
    return source if source in (*OPENERS, *SPEECH) or not os.path.exists(path) else str(Path(path).absolute())


def read_record(run: Path) -> dict[str, Any] | None:
    """The content of run.json, None if there is none. Raises UndiffuseError if it is damaged."""
    if not (run / NAME).exists():
        return None
    read_run(run)
    record: dict[str, Any] = read_json(run / NAME)
    if not isinstance(record.setdefault("data", {}), dict):
        raise UndiffuseError(f"{run / NAME} is damaged or not of a run of undiffuse: data is not a table")
    return record


def configuration(values: dict[str, Any], run: Path, resume: bool) -> Config:
    """The configuration of the run in a folder: new, or the saved one with the changes that a resumed run may make.

    Raises UsageError for a folder in use, for one with nothing to resume, and for invalid settings.
    """
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file, and a run is a folder: choose another --out")
    record = read_record(run)
    if record is None:
        if resume and not values:
            raise UsageError(f"nothing to resume in {run}: it holds no run")
        if run.is_dir() and (others := [p.name for p in run.iterdir() if p.name[0] != "." and p.suffix not in LOGS]):
            raise UsageError(f"{run} is not a run of undiffuse, but holds {min(others)}: choose another --out")
        if values.get("training.steps") and values.get("training.minutes"):
            raise UsageError("training.steps and training.minutes exclude each other: give one")
        return make_config(values, base_config(values))
    if not resume:
        raise UsageError(f"{run} already holds a run: add --resume to go on with it, or choose another --out")
    config = read_config(record["config"])
    values = {name: value for name, value in values.items() if value is not None}  # None is "decide", which was done
    wanted = make_config(values, config)
    for name in values:
        section, key = name.split(".")[:2]
        ours, theirs = (getattr(getattr(c, section), key) for c in (config, wanted))
        if ours != theirs and name not in MACHINE_KEYS and name != "data.source":
            raise UsageError(
                f"{run} was begun with {name} = {ours}, not {theirs}: a resumed run keeps its settings. "
                "Choose another --out for new ones."
            )
    return wanted


def data_source(run: Path, config: Config, given: bool) -> str:
    """Where to read the data: what is `given` now, else where the run found it, else the name it had.

    Raises UsageError if a run's data is in neither place.
    """
    record = read_record(run)
    if given or record is None:
        return located(config.data.source)
    if source := recorded_source(run):
        return source
    source, known = located(config.data.source), str(record["data"].get("source", ""))
    if os.path.isabs(known) and not os.path.exists(source):
        resumed = f"undiffuse train DATA --resume --out {shlex.quote(str(run))}"
        raise UsageError(f"the data of {run} is no longer at {known}: say where it is now, with {resumed}")
    return source


def check_data(run: Path, config: Config, data: ImageSet) -> None:
    """Raises if a run was trained on other content: UsageError for another name, UndiffuseError for the same."""
    record = read_record(run)
    if record is None:
        return
    began_with, saved = record["config"]["data"]["source"], checkpoints(run)
    learnt = read_card(saved[-1]).data.fingerprint if saved else record["data"].get("fingerprint")
    if learnt == data.fingerprint or (learnt is None and began_with == config.data.source):
        return
    if began_with != config.data.source:
        raise UsageError(
            f"{run} was begun with data.source = {began_with}, and the content of {config.data.source} is different: "
            "a resumed run keeps its data. Choose another --out."
        )
    raise UndiffuseError(f"{data.name} has changed since {run} began: its content is not what the run was trained on")


def check_base(run: Path, config: Config, data: ImageSet) -> None:
    """Raises UsageError if a run begins with a base for another kind of data."""
    if config.training.base is None or checkpoints(run):
        return
    theirs = read_card(find(config.training.base)).data
    if theirs.domain != data.domain:
        ours = f"{data.name} holds {domain_of(data).noun} ({data.domain})"
        raise UsageError(f"{config.training.base} is a model of {domain_of(theirs).noun} ({theirs.domain}), and {ours}")


def start(run: Path, config: Config) -> tuple[Model | None, Origin | None]:
    """The base whose weights a run begins with; for a run that has checkpoints, what is recorded of its base.

    Raises UsageError for a base that has changed since the run began.
    """
    if config.training.base is None:
        return None, None
    origin = as_origin((read_record(run) or {}).get("base"))
    if checkpoints(run):
        if origin is None:
            raise UndiffuseError(f"{run / NAME} is damaged: it lacks the record of the base {config.training.base}")
        return None, origin
    base = load(config.training.base, "cpu")
    if origin is not None and origin.fingerprint != base_fingerprint(base):
        raise UsageError(f"{config.training.base} is another model than {run} began with: choose another --out")
    return base, None


def write_record(
    run: Path,
    values: dict[str, Any],
    config: Config,
    facts: DataFacts,
    source: str,
    origin: Origin | None = None,
    teacher: str | None = None,
) -> None:
    """Records that a run begins, or where the data of a resumed run is now; `teacher` is a fingerprint."""
    old = read_record(run)
    record = dict(old or {"settings": values, "config": config.model_dump(mode="json")})
    record["config"] = {**record["config"], "data": config.data.model_dump(mode="json")}
    record["data"] = {**facts.to_json(), "source": source}
    if origin is not None:
        record["base"] = asdict(origin)
    if teacher is not None:
        record["teacher"] = teacher
    if json.loads(json.dumps(record)) != old:
        write_json(run / NAME, record)
