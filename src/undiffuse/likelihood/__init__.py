"""How probable data is under a model: the variational bound, the probability-flow ODE, in bits per dimension."""

from undiffuse.likelihood.bound import Bound, Formula, bound, every_step, optimal_variance, spread, squared_errors
from undiffuse.likelihood.density import Density, density
from undiffuse.likelihood.ode import Likelihood, decode, encode, log_likelihood
from undiffuse.likelihood.ode_density import ode_density
from undiffuse.likelihood.solver import Solver

__all__ = [
    "Bound",
    "Density",
    "Formula",
    "Likelihood",
    "Solver",
    "bound",
    "decode",
    "density",
    "encode",
    "every_step",
    "log_likelihood",
    "ode_density",
    "optimal_variance",
    "spread",
    "squared_errors",
]
