"""Denoisers that wrap denoisers, so that every sampler, grid and likelihood gets them: thresholds and guidance."""

from undiffuse.guidance.difference import (
    Guidance,
    Pair,
    Rule,
    composed,
    guided,
    in_one_batch,
    linear,
    of_two,
    projected,
    rescaled,
    with_and_without,
    within,
)
from undiffuse.guidance.thresholds import Overshoot, clip, dynamic_threshold, unchanged

__all__ = [
    "Guidance",
    "Overshoot",
    "Pair",
    "Rule",
    "clip",
    "composed",
    "dynamic_threshold",
    "guided",
    "in_one_batch",
    "linear",
    "of_two",
    "projected",
    "rescaled",
    "unchanged",
    "with_and_without",
    "within",
]
