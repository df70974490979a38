"""Denoisers that wrap denoisers, so that every sampler, grid and likelihood gets them: thresholds and guidance."""

from undiffuse.guidance.thresholds import clip, dynamic_threshold, unchanged

__all__ = ["clip", "dynamic_threshold", "unchanged"]
