"""The likelihood of data under a model: the variational bound and the probability-flow ODE, in bits per dimension."""

from undiffuse.likelihood.bound import (
    Bound,
    Formula,
    all_steps,
    estimate_bound,
    optimal_variance,
    squared_errors,
    stratified,
)
from undiffuse.likelihood.ode import Likelihood, decode, encode, log_likelihood
from undiffuse.likelihood.solver import Solver

__all__ = [
    "Bound",
    "Formula",
    "Likelihood",
    "Solver",
    "all_steps",
    "decode",
    "encode",
    "estimate_bound",
    "log_likelihood",
    "optimal_variance",
    "squared_errors",
    "stratified",
]
