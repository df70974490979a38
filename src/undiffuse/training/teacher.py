"""The teacher of a distillation: the model that a run starts from, as it was."""

from accelerate import Accelerator

from undiffuse.conditions import Condition
from undiffuse.config import Config
from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.guidance import Guidance
from undiffuse.model import Model, load
from undiffuse.objectives.flow_map import Teach
from undiffuse.process import Denoise


def teacher(config: Config, accelerator: Accelerator) -> tuple[Model, Teach]:
    """training.teacher, or else training.base; and condition -> its denoiser, guided by objective.guidance, with its
    predictions in range.

    Raises UsageError for one that is no denoiser of pictures or points, or a student itself.
    """
    name = config.training.teacher or config.training.base
    assert name is not None
    model = load(name, accelerator.device)
    if model.config.network.jumps:
        raise UsageError(f"{model.name} is a student already: distil the model that it learnt from")
    accelerator.prepare_model(model.network, evaluation_mode=True)  # the precision of the run
    recipe = Recipe(guidance=Guidance(config.objective.guidance))

    def teach(condition: Condition | None) -> Denoise:
        return recipe.denoise(model, condition)

    return model, teach
