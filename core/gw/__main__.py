"""``python -m gw``: the same as the command ``gw``."""

from gw.cli.main import main

main()
