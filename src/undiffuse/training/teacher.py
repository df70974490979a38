"""The teacher of a distillation: the model that a run starts from, as it was."""

from pathlib import Path

from accelerate import Accelerator

from undiffuse.adapters import base_fingerprint
from undiffuse.card import DataFacts, find, read_card
from undiffuse.conditions import Condition
from undiffuse.config import Config
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.guidance import Guidance
from undiffuse.model import Model, load
from undiffuse.objectives.flow_map import Teach
from undiffuse.process import Denoise
from undiffuse.training.record import read_record


def teacher(config: Config, data: DataFacts, run: Path, accelerator: Accelerator) -> tuple[Model, Teach]:
    """training.teacher, or else training.base; and condition -> its denoiser, guided by objective.guidance, with its
    predictions in range.

    Raises UsageError for one that is no denoiser, a student itself, of other data than `data`, or another than the run
    in the folder `run` began with; for a student to go on with that learnt from another; and for guidance that it
    cannot have.
    """
    name = config.training.teacher or config.training.base
    assert name is not None
    model = load(name, accelerator.device)
    if model.config.network.jumps:
        raise UsageError(f"{model.name} is a student already: distil the model that it learnt from")
    if model.config.process != config.process:
        raise UsageError(f"{model.name} is of another process than the student: leave process.* out")
    ours, theirs = ((facts.domain, facts.shape, facts.classes) for facts in (data, model.data))
    kinds = [None if facts.takes is None else facts.takes.kind for facts in (data, model.data)]
    if ours != theirs or kinds[0] != kinds[1]:
        raise UsageError(
            f"{model.name} was trained on other data than {data.name}: other pictures, classes or captions"
        )
    record, fingerprint = read_record(run), base_fingerprint(model)
    if (record or {}).get("teacher", fingerprint) != fingerprint:
        raise UsageError(f"{model.name} is another model than {run} began with: choose another --out")
    if record is None and config.training.teacher and config.training.base:
        learnt = read_card(find(config.training.base)).training
        taught_by = learnt.get("teacher") or learnt.get("base", {}).get("fingerprint", fingerprint)
        if taught_by != fingerprint:
            raise UsageError(f"{config.training.base} is a student of another model than {model.name}")
    accelerator.prepare_model(model.network, evaluation_mode=True)  # the precision of the run
    recipe = Recipe(guidance=Guidance(config.objective.guidance))

    def teach(condition: Condition | None) -> Denoise:
        return recipe.denoise(model, condition)

    teach(model.condition(range(1)))
    return model, teach
