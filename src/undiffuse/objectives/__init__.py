"""How a denoiser learns: losses, their weightings, and the times they are taken at."""

from undiffuse.objectives.losses import Objective, discretised_log_prob, variational_bound, weighted_error
from undiffuse.objectives.times import DRAWS, TIME_SAMPLERS, TimeSampler, log_normal
from undiffuse.objectives.weighting import WEIGHTINGS, Weighting

__all__ = [
    "DRAWS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "Objective",
    "TimeSampler",
    "Weighting",
    "discretised_log_prob",
    "log_normal",
    "variational_bound",
    "weighted_error",
]
