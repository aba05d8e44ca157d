"""What must be settled before anything imports torch, diffusers or matplotlib."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the Makefile, for a plain `pytest`
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails instead of passing by luck
os.environ["MPLBACKEND"] = "Agg"
