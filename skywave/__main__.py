"""`python -m skywave`."""

from .cli import main

main()
