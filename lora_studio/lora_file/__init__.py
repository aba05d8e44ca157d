"""LoRA files: one reader and one writer for every spelling."""
