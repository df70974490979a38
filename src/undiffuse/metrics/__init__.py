"""Features of images, and what is measured in them: distances, manifolds, scores, copying, with their intervals."""

from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.measure import GROUPS, METRICS, measure

__all__ = ["GROUPS", "METRICS", "Measure", "measure"]
