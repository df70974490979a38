"""Data sets in, memory-mapped uint8 images out."""

from undiffuse.data.entries import Entry, catalogue
from undiffuse.data.imageset import ImageSet, MixedSizes
from undiffuse.data.loading import load, stored_sizes

__all__ = ["Entry", "ImageSet", "MixedSizes", "catalogue", "load", "stored_sizes"]
