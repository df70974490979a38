"""Denoisers that wrap denoisers, so that every sampler, grid and likelihood gets them: thresholds and guidance."""

from undiffuse.guidance.mmps import differentiated, moment_matching
from undiffuse.guidance.observations import Covariance, LinearMap, Observation, gaussian_guidance, together
from undiffuse.guidance.thresholds import clip, dynamic_threshold, unchanged

__all__ = [
    "Covariance",
    "LinearMap",
    "Observation",
    "clip",
    "differentiated",
    "dynamic_threshold",
    "gaussian_guidance",
    "moment_matching",
    "together",
    "unchanged",
]
