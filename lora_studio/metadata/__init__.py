"""What files say of themselves and of what they were made from."""
