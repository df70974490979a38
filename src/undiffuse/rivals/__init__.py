"""Rivals of diffusion: other generative models, each one in a file of its own."""
