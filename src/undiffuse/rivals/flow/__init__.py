"""Normalising flows: one that samples patch by patch, and one that samples in one pass."""

from undiffuse.rivals.flow.coupling import Coupling
from undiffuse.rivals.flow.tarflow import TarFlow

__all__ = ["Coupling", "TarFlow"]
