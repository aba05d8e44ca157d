"""What layers are called in published files."""
