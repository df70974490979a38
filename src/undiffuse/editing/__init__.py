"""Editing by what a model knows: SDEdit, inpainting, inversion, interpolation, style mixing. Recipes over `trajectory`."""
