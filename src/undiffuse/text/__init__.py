"""Sentences as numbers: the words a data set knows, and a frozen sentence encoder."""

PROMPTED = 2.0
"""The scale of guidance with a prompt, unless one is given."""
