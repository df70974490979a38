"""Quality, diversity and copying, measured with intervals, a floor and their conditions."""

from undiffuse.metrics.evaluate import Evaluation, evaluate
from undiffuse.metrics.intervals import Measure

__all__ = ["Evaluation", "Measure", "evaluate"]
