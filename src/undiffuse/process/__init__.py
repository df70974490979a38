"""Forward processes q, Gaussian and categorical, and their noise schedules."""

from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.closed_form import EDM, VE, VP, FlowMatching, LinearSurvival, SubVP
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.laws import Categorical, Law, Normal, expand, per_sample
from undiffuse.process.log_snr import LogSNR
from undiffuse.process.ordinal import OrdinalProcess
from undiffuse.process.prediction import Denoise, Prediction
from undiffuse.process.process import Process
from undiffuse.process.schedule import NoiseLevel, Schedule, Time, cached_by_time, float64, float64_device
from undiffuse.process.table import Table, cosine, linear, quadratic, scaled_linear, sigmoid, zero_terminal_snr

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Categorical",
    "CategoricalProcess",
    "Denoise",
    "FlowMatching",
    "GaussianProcess",
    "Law",
    "LinearSurvival",
    "LogSNR",
    "NoiseLevel",
    "Normal",
    "OrdinalProcess",
    "Prediction",
    "Process",
    "Schedule",
    "SubVP",
    "Table",
    "Time",
    "cached_by_time",
    "cosine",
    "expand",
    "float64",
    "float64_device",
    "linear",
    "per_sample",
    "quadratic",
    "scaled_linear",
    "sigmoid",
    "zero_terminal_snr",
]
