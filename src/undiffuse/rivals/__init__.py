"""Models that are not diffusion, to compare it with: each knows its own law and nothing of the trainer or the data."""
