"""Data sets in, memory-mapped uint8 images out."""

from undiffuse.data.cache import cache_dir
from undiffuse.data.entries import Entry, catalogue
from undiffuse.data.imageset import ImageSet, by
from undiffuse.data.loading import load

__all__ = ["Entry", "ImageSet", "by", "cache_dir", "catalogue", "load"]
