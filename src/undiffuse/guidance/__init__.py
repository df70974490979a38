"""Denoisers that wrap denoisers, so that every sampler, grid and likelihood gets them: thresholds and guidance."""

from undiffuse.guidance.classifier import LogProb, class_log_prob, classifier_guidance
from undiffuse.guidance.thresholds import clip, dynamic_threshold, unchanged

__all__ = ["LogProb", "class_log_prob", "classifier_guidance", "clip", "dynamic_threshold", "unchanged"]
