"""Sentences as numbers: the words a data set knows, and a frozen sentence encoder."""
