"""What is learned: how latents are noised, and how the prediction's error is weighted."""
