"""Tools on finished files, without a run."""
