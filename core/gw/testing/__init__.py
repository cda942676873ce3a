"""Try a plugin without a socket. Shipped to users; imports no test framework."""

from gw.testing.check import check_filter
from gw.testing.drive import Played, drive

__all__ = ["Played", "check_filter", "drive"]
