"""Features of images, and the metrics computed from them: distances, manifolds, scores, copying, with intervals."""

from undiffuse.metrics.intervals import Measure
from undiffuse.metrics.measure import GROUPS, METRICS, measure

__all__ = ["GROUPS", "METRICS", "Measure", "measure"]
