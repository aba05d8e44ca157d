"""Arithmetic and conversions on finished LoRA files, without a run."""
