"""lora_files."""
