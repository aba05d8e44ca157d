"""What a recipe will take, said before it is trained: memory, disk and time."""
