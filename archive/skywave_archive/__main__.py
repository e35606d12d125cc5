"""``python -m skywave_archive``."""

from .cli import main

main()
