"""From a folder of images to micro-batches: scan, captioners, buckets, cache, batches."""
