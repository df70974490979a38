"""Sampling: time grids, step rules and the loop."""

from undiffuse.registry import GRIDS, SAMPLERS, TOKEN_SAMPLERS, Sampler
from undiffuse.sampling.grids import at_log_snrs, make_grid
from undiffuse.sampling.loop import default_sampler, trajectory
from undiffuse.sampling.remembered import Remembered
from undiffuse.sampling.search import search_grid
from undiffuse.sampling.solvers import dpm_solver_pp, unipc
from undiffuse.sampling.steps import PURE_NOISE, State, Step, ancestral, cfg_plus_plus, ddim, heun
from undiffuse.sampling.tokens import confidence, first_hitting, predictor_corrector, remdm, reveal

__all__ = [
    "GRIDS",
    "PURE_NOISE",
    "SAMPLERS",
    "TOKEN_SAMPLERS",
    "Remembered",
    "Sampler",
    "State",
    "Step",
    "ancestral",
    "at_log_snrs",
    "cfg_plus_plus",
    "confidence",
    "ddim",
    "default_sampler",
    "dpm_solver_pp",
    "first_hitting",
    "heun",
    "make_grid",
    "predictor_corrector",
    "remdm",
    "reveal",
    "search_grid",
    "trajectory",
    "unipc",
]
