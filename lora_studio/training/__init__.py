"""The training engine. Read `loop.py` first; `build.py` turns a recipe into what it needs."""
