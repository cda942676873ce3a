"""What breakers count for whoever exports metrics (behaviour 15), by the name of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol
from weakref import finalize, ref

from gw import Figures
from gw_breaker.machine import State, Transition

__all__ = ["Counts"]


class Stated(Protocol):
    """Who knows the breakers that there are."""

    def states(self) -> Iterable[tuple[str, State]]:
        """Return the name of each breaker, and the state it is in."""


class Counts:
    """The three families. They are the gateway's, and outlive *who* is asked for the states."""

    __slots__ = ("_rejected", "_transitions")

    def __init__(self, figures: Figures, who: Stated) -> None:
        self._rejected = figures.counter(
            "gw.circuit_breaker.rejected", "{requests}", "Requests that a breaker turned away", ("service", "reason")
        )
        self._transitions = figures.counter(
            "gw.circuit_breaker.transitions",
            "{transitions}",
            "Changes of a breaker's state",
            ("service", "from", "to", "trigger"),
        )
        level = figures.level("gw.circuit_breaker.state", "{breakers}", "Breakers in each state", ("service", "state"))
        asked = ref(who)

        def rows() -> Iterator[tuple[tuple[str, str], int]]:
            found = asked()
            for name, state in found.states() if found is not None else ():
                for each in State:
                    yield (name, each.value), int(each is state)

        finalize(who, level.watch(rows))

    def moved(self, service: str, transition: Transition) -> None:
        self._transitions.at(service, transition.before.value, transition.after.value, transition.trigger).value += 1

    def rejected(self, service: str, reason: str) -> None:
        self._rejected.at(service, reason).value += 1
