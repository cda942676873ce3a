"""What a policy covers: a path, and perhaps only some hosts and methods. Which of several counts is `gw_auth.policies`' business."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Covered"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Covered(Generic[T]):
    """What a rule covers."""

    prefix: str
    """A literal path without its last slash; empty is every path."""
    rule: T = field(repr=False)
    hosts: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def takes(self, host: str, method: str) -> bool:
        if self.methods and method not in self.methods and not (method == "HEAD" and "GET" in self.methods):
            return False
        return not self.hosts or any(
            host == each or (each[0] == "*" and host.endswith(each[1:]) and len(host) >= len(each))
            for each in self.hosts
        )
