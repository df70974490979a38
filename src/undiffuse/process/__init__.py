"""What noise does: schedules and the Gaussian process q."""

from undiffuse.process.categorical import Categorical, CategoricalProcess
from undiffuse.process.closed_form import EDM, VE, VP, FlowMatching, SubVP
from undiffuse.process.gaussian import GaussianProcess, Normal, expand
from undiffuse.process.knots import LogSNR
from undiffuse.process.schedule import Level, Schedule, Time, float64, remembered
from undiffuse.process.table import Table, cosine, linear, quadratic, scaled_linear, sigmoid, zero_terminal_snr

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Categorical",
    "CategoricalProcess",
    "FlowMatching",
    "GaussianProcess",
    "Level",
    "LogSNR",
    "Normal",
    "Schedule",
    "SubVP",
    "Table",
    "Time",
    "cosine",
    "expand",
    "float64",
    "linear",
    "quadratic",
    "remembered",
    "scaled_linear",
    "sigmoid",
    "zero_terminal_snr",
]
