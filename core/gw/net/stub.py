"""A stub resolver (RFC 1034 section 5.3.1) on dnspython: it asks name servers itself, and so knows how long answers hold.

Its questions are asked in threads, as the system's are, so it is the same on every event loop. Imported only where
`dns.resolver` asks for it: dnspython is an extra.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
from anyio import to_thread
from dns.exception import DNSException, Timeout
from dns.nameserver import Do53Nameserver
from dns.rdatatype import RdataType
from dns.resolver import NXDOMAIN, Answer as Answered, NoNameservers, Resolver as Asker

from gw.limits import RESOLVE_AGAIN
from gw.net.resolve import Answer, LookupFailed, Services, Target

__all__ = ["Stub"]

_TYPES: Final[Mapping[int, tuple[RdataType, ...]]] = {
    socket.AF_INET: (RdataType.A,),
    socket.AF_INET6: (RdataType.AAAA,),
}
_BOTH: Final[tuple[RdataType, ...]] = (RdataType.A, RdataType.AAAA)

_PATIENCE: Final = 0.75
"""The part of the time for a look-up that one question may take: while one is not answered, the other's answer counts."""


class Stub:
    """Asks *servers*, addresses and ports; where there are none, those of /etc/resolv.conf, with its search list.

    *timeout* is how long a look-up may take, in seconds.
    """

    def __init__(self, servers: Sequence[tuple[str, int]], timeout: float) -> None:
        self._servers = tuple(servers)
        self._patience = timeout * _PATIENCE

    async def lookup(self, name: str, family: int) -> Answer:
        """Find the addresses of *name*; raises `LookupFailed`.

        If only one of two questions is answered, that is the answer, and it does not hold for long.
        """
        answers: list[Answer] = []
        failures: list[LookupFailed] = []

        async def one(kind: RdataType) -> None:
            try:
                answers.append(
                    await to_thread.run_sync(
                        self._addresses, name, kind, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                    )
                )
            except LookupFailed as failure:
                failures.append(failure)

        async with anyio.create_task_group() as tasks:
            for kind in _TYPES.get(family, _BOTH):
                tasks.start_soon(one, kind)
        found = [address for answer in answers for address in answer.addresses]
        if failures and not found:
            raise failures[0]
        holds = [answer.ttl for answer in answers if answer.addresses and answer.ttl is not None]
        return Answer(found, min((*holds, RESOLVE_AGAIN) if failures else holds, default=None))

    async def services(self, name: str) -> Services:
        """Find the targets of the service *name* (RFC 2782); raises `LookupFailed`."""
        return await to_thread.run_sync(self._targets, name, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))

    def _targets(self, name: str) -> Services:
        found = self._ask(name, RdataType.SRV)
        records = list(found.rrset or ())
        if not records:
            raise LookupFailed("it has no SRV record", "nxdomain")
        targets = [
            Target(each.target.to_text(omit_final_dot=True), each.port, each.priority, each.weight)
            for each in records
            if each.target.to_text() != "."  # the service is decidedly not there
        ]
        return Services(targets, found.chaining_result.minimum_ttl)

    def _addresses(self, name: str, kind: RdataType) -> Answer:
        found = self._ask(name, kind)
        return Answer([str(record.address) for record in found.rrset or ()], found.chaining_result.minimum_ttl)

    def _ask(self, name: str, kind: RdataType) -> Answered:
        """Ask, until there is an answer or the time is over; raises `LookupFailed`."""
        try:
            asker = Asker(configure=not self._servers)  # each time, since resolv.conf may have changed
            if self._servers:
                asker.nameservers = [Do53Nameserver(address, port) for address, port in self._servers]
            return asker.resolve(
                name, kind, raise_on_no_answer=False, lifetime=self._patience, search=not self._servers
            )
        except NXDOMAIN:
            raise LookupFailed("there is no such name", "nxdomain") from None
        except Timeout:
            raise LookupFailed(f"no name server answered within {self._patience:g} s", "timeout") from None
        except NoNameservers:
            raise LookupFailed(
                "every name server failed, refused, or gave an answer that is none", "servfail"
            ) from None
        except DNSException as error:
            raise LookupFailed(str(error) or type(error).__name__, "other_error") from None
