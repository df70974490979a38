"""A variational autoencoder with a hierarchy of latents."""

from undiffuse.rivals.vae.vae import VAE as VAE
