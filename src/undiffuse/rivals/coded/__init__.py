"""An autoregressive model of a picture's code, which is short: the fast one."""

from undiffuse.rivals.coded.coded import Coded

__all__ = ["Coded"]
