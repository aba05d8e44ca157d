"""Checkpoints in the original layout (CompVis, Stability): one file that holds a whole base."""
