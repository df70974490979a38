"""How much an edit changes: a strength between 0 and 1 is a noise level, and all N evaluations are spent below it."""

import torch
from torch import Tensor

from undiffuse.errors import UsageError
from undiffuse.generate import Recipe
from undiffuse.model import Model
from undiffuse.process import NoiseLevel, Schedule, Time
from undiffuse.registry import SAMPLERS
from undiffuse.sampling import make_grid


def time_of(schedule: Schedule, strength: float) -> float:
    """The time whose noise is sigma / (alpha + sigma) = `strength`: the t of flow matching, whatever the schedule.

    Strength 1/2 is as much noise as signal, 2/3 twice as much; 0 is the data and 1 pure noise. Raises UsageError for
    strengths outside of [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength = {strength:g} must lie between 0, which changes nothing, and 1, which draws anew")
    if strength in (0, 1):
        return float(strength)
    log_snr = 2 * torch.tensor((1 - strength) / strength, dtype=torch.float64).log()
    return schedule.time(log_snr).item()


def times_below(model: Model, recipe: Recipe, strength: float) -> Tensor:
    """The recipe's grid between the time of `strength` and the data: always `recipe.steps` steps.

    At strength 1 it is the recipe's own, to the bit; below, the same rule on the part of the schedule that is left.
    Raises UsageError for a strength so small that the grid has no room.
    """
    schedule = model.denoiser.process.schedule
    top = time_of(schedule, strength)
    if top == 1:
        return recipe.times(model)
    name = recipe.grid or SAMPLERS[recipe.sampler].grid
    try:
        return top * make_grid(name, _Below(schedule, top), recipe.steps)
    except ValueError:
        raise UsageError(
            f"strength = {strength:g} leaves no room for {recipe.steps} steps of the grid {name}: use more, or 0, "
            "which changes nothing"
        ) from None


class _Below(Schedule):
    """The part of a schedule up to the time `top`, stretched to [0, 1]."""

    def __init__(self, whole: Schedule, top: float):
        self.whole, self.top, self.t_min = whole, top, whole.t_min / top

    def noise_level(self, t: Time) -> NoiseLevel:
        return self.whole.noise_level(self.top * t)

    def log_snr(self, t: Time) -> Tensor:
        return self.whole.log_snr(self.top * t)

    def log_snr_derivative(self, t: Time) -> Tensor:
        return self.top * self.whole.log_snr_derivative(self.top * t)

    def time(self, log_snr: Time) -> Tensor:
        return (self.whole.time(log_snr) / self.top).clamp(max=1)
