"""``python -m akocore``."""

from akocore.cli import main

main()
