"""Arithmetic on finished LoRA files, always on the changes of weight and never on the two factors apart."""
