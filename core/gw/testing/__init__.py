"""Try a plugin without a socket. Shipped to users; imports no test framework."""

from gw.testing.check import check_filter
from gw.testing.drive import Played, drive
from gw.testing.gateway import Answer, InMemory, Upstream, in_memory
from gw.testing.patience import PATIENCE
from gw.testing.talk import Said, talk

__all__ = ["PATIENCE", "Answer", "InMemory", "Played", "Said", "Upstream", "check_filter", "drive", "in_memory", "talk"]
