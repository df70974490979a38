"""Training objectives: losses, their weightings, and the distributions of training times."""

from undiffuse.objectives.bound import (
    continuous_bound,
    hybrid,
    hybrid_cross_entropy,
    reconstruction_share,
    step_times,
    variational_bound,
)
from undiffuse.objectives.categorical import categorical_bound, count
from undiffuse.objectives.flow_map import flow_map
from undiffuse.objectives.importance import Importance
from undiffuse.objectives.losses import Objective, edm_loss, l_simple, weighted_error
from undiffuse.objectives.spans import next_token, spans
from undiffuse.objectives.times import TimeSampler, log_normal
from undiffuse.objectives.weighting import Weighting
from undiffuse.registry import DRAWS, TIME_SAMPLERS, WEIGHTINGS

__all__ = [
    "DRAWS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "Importance",
    "Objective",
    "TimeSampler",
    "Weighting",
    "categorical_bound",
    "continuous_bound",
    "count",
    "edm_loss",
    "flow_map",
    "hybrid",
    "hybrid_cross_entropy",
    "l_simple",
    "log_normal",
    "next_token",
    "reconstruction_share",
    "spans",
    "step_times",
    "variational_bound",
    "weighted_error",
]
