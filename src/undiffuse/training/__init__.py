"""Training: the run, its loop, its checkpoints."""

from undiffuse.training.run import Outcome, train

__all__ = ["Outcome", "train"]
