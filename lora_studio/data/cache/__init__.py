"""Latents and conditioning on disk, named after all that they are made from."""
