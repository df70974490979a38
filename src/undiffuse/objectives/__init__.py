"""How a denoiser learns: losses, their weightings, and the times they are taken at."""

from undiffuse.objectives.bound import (
    continuous_bound,
    discretised_log_prob,
    first_share,
    hybrid,
    step_times,
    variational_bound,
)
from undiffuse.objectives.importance import Importance
from undiffuse.objectives.losses import Objective, weighted_error
from undiffuse.objectives.times import DRAWS, TIME_SAMPLERS, TimeSampler, log_normal
from undiffuse.objectives.weighting import WEIGHTINGS, Weighting

__all__ = [
    "DRAWS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "Importance",
    "Objective",
    "TimeSampler",
    "Weighting",
    "continuous_bound",
    "discretised_log_prob",
    "first_share",
    "hybrid",
    "log_normal",
    "step_times",
    "variational_bound",
    "weighted_error",
]
