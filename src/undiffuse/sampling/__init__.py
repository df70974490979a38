"""Sampling: time grids, step rules and the loop."""

from undiffuse.registry import GRIDS, SAMPLERS, Sampler
from undiffuse.sampling.grids import at_log_snrs, make_grid
from undiffuse.sampling.loop import default_sampler, trajectory
from undiffuse.sampling.search import search_grid
from undiffuse.sampling.solvers import dpm_solver_pp, unipc
from undiffuse.sampling.steps import PURE_NOISE, State, Step, ancestral, cfg_plus_plus, ddim, heun

__all__ = [
    "GRIDS",
    "PURE_NOISE",
    "SAMPLERS",
    "Sampler",
    "State",
    "Step",
    "ancestral",
    "at_log_snrs",
    "cfg_plus_plus",
    "ddim",
    "default_sampler",
    "dpm_solver_pp",
    "heun",
    "make_grid",
    "search_grid",
    "trajectory",
    "unipc",
]
