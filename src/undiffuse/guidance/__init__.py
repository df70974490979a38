"""Denoisers that wrap denoisers, so that every sampler, grid and likelihood gets them: thresholds and guidance."""

from undiffuse.guidance.classifier import (
    LogProb,
    class_log_prob,
    classifier_guidance,
)
from undiffuse.guidance.difference import (
    Guidance,
    Pair,
    Rule,
    composed,
    guided,
    in_one_batch,
    inside_interval,
    linear,
    of_two,
    projected,
    rescaled,
    with_and_without,
    within,
)
from undiffuse.guidance.mmps import differentiated, moment_matching
from undiffuse.guidance.observations import Covariance, LinearMap, Observation, gaussian_guidance, together
from undiffuse.guidance.thresholds import (
    Overshoot,
    clip,
    dynamic_threshold,
    unchanged,
)
from undiffuse.guidance.tokens import guided_tokens

__all__ = [
    "Covariance",
    "Guidance",
    "LinearMap",
    "LogProb",
    "Observation",
    "Overshoot",
    "Pair",
    "Rule",
    "class_log_prob",
    "classifier_guidance",
    "clip",
    "composed",
    "differentiated",
    "dynamic_threshold",
    "gaussian_guidance",
    "guided",
    "guided_tokens",
    "in_one_batch",
    "inside_interval",
    "linear",
    "moment_matching",
    "of_two",
    "projected",
    "rescaled",
    "together",
    "unchanged",
    "with_and_without",
    "within",
]
