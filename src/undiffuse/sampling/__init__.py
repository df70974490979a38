"""How noise becomes data: time grids, one-step rules and the loop."""

from undiffuse.registry import GRIDS, SAMPLERS, Sampler
from undiffuse.sampling.grids import at_log_snrs, make_grid
from undiffuse.sampling.loop import default_sampler, trajectory
from undiffuse.sampling.search import search_grid
from undiffuse.sampling.solvers import dpm_solver_pp, unipc
from undiffuse.sampling.steps import State, Step, ancestral, ddim, heun

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "Sampler",
    "State",
    "Step",
    "ancestral",
    "at_log_snrs",
    "ddim",
    "default_sampler",
    "dpm_solver_pp",
    "heun",
    "make_grid",
    "search_grid",
    "trajectory",
    "unipc",
]
