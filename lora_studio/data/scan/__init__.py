"""A folder of images -> records: what is there, what is used, and why the rest is not."""
