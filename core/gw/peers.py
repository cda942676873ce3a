"""Both sides of an exchange, as a chain sees them: what a client's connection and an upstream's have to offer.

Interfaces only. `gw.downstream` and `gw.upstream` have what implements them, and `gw.testing` has it in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol as Interface

from gw.failures import UpstreamFailure
from gw.filters import Attempt, Exchange, Reply, Response

if TYPE_CHECKING:
    from gw.tunnel import End
    from gw.websocket import Handler

__all__ = ["Connection", "Downstream", "Source", "Target", "Tries"]


class Source(Interface):
    def take(self) -> tuple[bytes, bool] | None:
        """Return the next chunk and whether it is the last, if it is at hand."""

    async def receive(self) -> tuple[bytes, bool]:
        """Wait for the next chunk; raises a `Failure`."""


class Downstream(Source, Interface):
    """The client's side of one exchange."""

    async def send_interim(self, response: Response) -> None:
        """Pass on a 1xx head; not for clients that cannot take it."""

    async def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        """Send the head of ``ex.response`` and the first of its body in one write; raises `ClientGone`."""

    async def send(self, chunk: bytes, end: bool) -> None: ...

    def close_after(self) -> None:
        """Close the connection after this response, and say so in its head."""

    def reset(self) -> None:
        """Break the response off, so that the client can tell."""

    def tunnel(self, go_away: Callable[[], None]) -> End:
        """Return the bytes in both directions, after a 101; *go_away* is called when the connection is to end."""

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run *run*, which does not raise, beside the exchange; it is cancelled with the connection."""


class Connection(Source, Interface):
    """An upstream's side of one attempt.

    The first chunk that it gives may be a `memoryview`, which is written on like the `bytes` that it says it is: a
    large one is not copied out of the read that brought the head with it.
    """

    def start(self, ex: Exchange, chunk: bytes, end: bool) -> None:
        """Send the request's head and the first of its body in one write, without waiting."""

    async def send(self, chunk: bytes, end: bool) -> None: ...

    async def response(self) -> Response:
        """Wait for the next head, interim ones included; raises an `UpstreamFailure`, or what `fail` was given."""

    def hold(self) -> None:
        """Say that the response is kept until all of it is here: that has as long as its head had (behaviour 11.2)."""

    def fail(self, error: Exception | None) -> None:
        """No more of the request will come: *error* ends the attempt, `None` waits for what the upstream says."""

    def tunnel(self) -> End | Handler:
        """Return the bytes in both directions, after a 101; a handler where the WebSocket ends in this process."""

    def finish(self) -> None:
        """Return it to its pool if both messages are complete, else close it. Must not wait."""


class Target(Interface):
    """Where a route sends: it knows endpoints and connections."""

    buffers: bool
    """Whether a request's body is read to its end before anything is sent."""

    def holds(self, ex: Exchange, attempt: Attempt, *, sending: bool) -> int:
        """Return how much of the body of ``ex.response``, which is not here in full, to hold before it is passed on; 0 to pass on what comes.

        *sending* says that the request is not sent to its end.
        """

    def choose(self, ex: Exchange, attempt: Attempt) -> Tries | None:
        """Set the attempt's upstream and endpoint; for a first attempt, return what decides about further ones, if anything does."""

    def divert(self, ex: Exchange, attempt: Attempt, upstream: str) -> None:
        """Choose once more, for *upstream*; raises `LookupError` if the route cannot be sent there."""

    def take(self, attempt: Attempt) -> Connection | None:
        """Return a connection that is at hand."""

    async def connect(self, attempt: Attempt, *, fresh: bool) -> Connection:
        """Wait for a connection, not a reused one if *fresh*; raises an `UpstreamFailure`."""

    async def sleep(self, seconds: float) -> None:
        """Wait before another attempt."""


class Tries(Interface):
    """What decides about the attempts of one exchange: the policy of its route (`gw.upstream.retry`)."""

    buffer: int
    """Bytes of the request's body to keep, so that they can be sent again."""
    statuses: frozenset[int]
    """Of responses that may be worth another attempt."""
    denied: str
    """Why a retry that was wanted cannot be had; empty if none was, or it can."""

    def __enter__(self) -> None:
        """The attempts begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        """The exchange is over; raises a `Failure` if that is because it took too long."""

    def limit(self, ex: Exchange, attempt: Attempt) -> AbstractContextManager[object] | None:
        """Return the context of one attempt, which raises an `UpstreamFailure` when it takes too long; `None` for none."""

    def answered(self, ex: Exchange, attempt: Attempt) -> None:
        """Say that the attempt has the head of its response: the limit is over."""

    def wants(self, ex: Exchange, attempt: Attempt, failure: UpstreamFailure | None, lost: str) -> float | None:
        """Return the seconds to wait before another attempt, `None` for no other. *lost* says why the body cannot be sent again."""

    def admit(self) -> Reply | None:
        """Count another attempt, or say why it may not be."""

    def release(self) -> None:
        """Take back what `admit` counted: the attempt does not come about."""
