"""The families whose denoiser is a UNet: Stable Diffusion 1, 2 and XL."""
