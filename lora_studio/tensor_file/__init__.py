"""Files of tensors: the one reader of a safetensors header, and what a file is that has none."""

FILE_ENDINGS = (".safetensors", ".ckpt")  # of a base or VAE in one file
