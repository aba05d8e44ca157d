"""The page on which a training begins."""
