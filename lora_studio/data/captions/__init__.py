"""Captions on the disk: found, worded, written, counted, replaced. Who says what they hold: captioners/."""
