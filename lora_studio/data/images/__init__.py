"""Untrusted image files: found, decoded under limits, and made into pixels."""
