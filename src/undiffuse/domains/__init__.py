"""Kinds of data, each in a file of its own: what x_0 is, how it is stored, augmented, shown and saved."""

from undiffuse.domains.domain import Domain
from undiffuse.domains.pictures import Pictures, scaled

__all__ = ["Domain", "Pictures", "scaled"]
