"""`python -m skywave`."""

from .commands.main import main

main()
