"""From a folder of pictures to micro-batches: scan, captioners, buckets, cache, batches."""
