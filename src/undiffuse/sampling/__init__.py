"""How noise becomes data: time grids, one-step rules and the loop."""

from undiffuse.sampling.grids import GRIDS, at_log_snrs, make_grid
from undiffuse.sampling.loop import SAMPLERS, Noise, Sampler, default_sampler, sample_noise, trajectory
from undiffuse.sampling.search import search_grid
from undiffuse.sampling.solvers import dpm_solver_pp, unipc
from undiffuse.sampling.steps import State, Step, ddim, ddpm, heun

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "Noise",
    "Sampler",
    "State",
    "Step",
    "at_log_snrs",
    "ddim",
    "ddpm",
    "default_sampler",
    "dpm_solver_pp",
    "heun",
    "make_grid",
    "sample_noise",
    "search_grid",
    "trajectory",
    "unipc",
]
