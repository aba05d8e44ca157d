"""Arithmetic on pixels: arrays in, numbers out."""
