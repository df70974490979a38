"""How probable data is under a model: the variational bound, the probability-flow ODE, in bits per dimension."""

from undiffuse.likelihood.bound import Bound, Formula, bound, every_step, optimal_variance, spread
from undiffuse.likelihood.density import Density, density

__all__ = ["Bound", "Density", "Formula", "bound", "density", "every_step", "optimal_variance", "spread"]
