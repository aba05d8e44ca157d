"""`python -m lora_studio`."""

from lora_studio.cli import main

main()
