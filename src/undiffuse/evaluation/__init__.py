"""Evaluation of models: their samples against data, their density, and reports of both."""

from undiffuse.evaluation.density import Density, density
from undiffuse.evaluation.evaluate import Evaluation, evaluate
from undiffuse.evaluation.ode_density import ode_density

__all__ = ["Density", "Evaluation", "density", "evaluate", "ode_density"]
