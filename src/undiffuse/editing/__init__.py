"""Editing by what a model knows: recipes over `trajectory`. SDEdit, inpainting, inversion, interpolation, mixing."""
