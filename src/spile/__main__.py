"""``python -m spile`` is ``spile``."""

from spile.cli import main

main()
