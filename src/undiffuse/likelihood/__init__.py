"""How probable data is under a model: the variational bound, the probability-flow ODE, in bits per dimension."""

from undiffuse.likelihood.bound import Bound, Formula, bound, every_step, optimal_variance, spread, squared_errors
from undiffuse.likelihood.ode import Likelihood, decode, encode, log_likelihood
from undiffuse.likelihood.solver import Solver

__all__ = [
    "Bound",
    "Formula",
    "Likelihood",
    "Solver",
    "bound",
    "decode",
    "encode",
    "every_step",
    "log_likelihood",
    "optimal_variance",
    "spread",
    "squared_errors",
]
