"""Forward-auth: another service is asked about the request, and its verdict is kept for as long as it says.

It is shown the head of the request, not the body. 2xx lets the request in; 401, 403 and redirects are the client's
answer as they come; anything else says nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

from gw import Answer, Caller, CallFailed, Exchange, Identity, Reply
from gw_auth.flights import Flights
from gw_auth.limits import MAX_DOCUMENT_SIZE, MAX_INTROSPECTIONS, MAX_KEPT_ANSWER, MAX_VERDICT_TIME, MAX_VERDICTS
from gw_auth.providers import USER_AGENT, Clock
from gw_auth.settings import ForwardAuth
from gw_auth.spans import Check
from gw_auth.verdicts import Denied, Judge, Recognised, Undetermined, Verdict

__all__ = ["Asking", "lasts"]

_SHOWN_TO_CLIENT: Final = ("content-type", "www-authenticate", "location", "set-cookie")
_MAX_AGE: Final = re.compile(r"max-age=([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class _Kept:
    verdict: Verdict
    until: float


def lasts(cache_control: str) -> float:
    """Return for how many seconds an answer with this ``Cache-Control`` may be kept by us; without a word, not at all."""
    words = {word.strip().lower() for word in cache_control.split(",")}
    if not words.isdisjoint({"no-store", "no-cache"}):
        return 0.0
    ages = [int(found[1]) for word in words if (found := _MAX_AGE.fullmatch(word))]
    return min(MAX_VERDICT_TIME, float(min(ages, default=0)))


class Asking:
    """Whatever the service recognises."""

    schemes: tuple[str, ...] = ()

    def __init__(self, name: str, settings: ForwardAuth, caller: Caller, clock: Clock) -> None:
        self._name, self._settings, self._caller, self._clock = name, settings, caller, clock
        self._kept: dict[bytes, _Kept] = {}
        self._flights: Flights[Verdict] = Flights(MAX_INTROSPECTIONS)

    async def recognise(self, ex: Exchange, judge: Judge) -> Verdict:
        shown = self._shown(ex)
        key = sha256(
            b"".join(
                b"%d:%b" % (len(each), each) for pair in shown for each in (pair[0].encode(), pair[1].encode("latin-1"))
            )
        )
        digest = key.digest()
        kept = self._kept.get(digest)
        if kept is not None and self._clock.steady() < kept.until:
            return kept.verdict
        check = Check(ex, self._name)
        check.begin()
        trace = check.headers()
        if trace:
            carried = {name for name, _ in trace}
            shown = [*(line for line in shown if line[0] not in carried), *trace]
        verdict = await self._flights.share(digest, partial(self._ask, digest, shown))
        if verdict is None:
            verdict = Undetermined(1.0, "other", f"too many requests wait for forward_auth.{self._name}")
        check.end(verdict if not isinstance(verdict, Recognised) else judge.lacks_scope(verdict) or verdict)
        return verdict

    def _shown(self, ex: Exchange) -> list[tuple[str, str]]:
        request = ex.request
        found = [
            ("x-forwarded-method", request.method),
            ("x-forwarded-proto", ex.client.scheme),
            ("x-forwarded-host", ex.asked_host),
            ("x-forwarded-uri", request.path_and_query),
            ("x-forwarded-for", ex.client.ip),
        ]
        found += ((name, value) for name in self._settings.request_headers for value in request.headers.get_all(name))
        return found

    async def _ask(self, digest: bytes, shown: list[tuple[str, str]]) -> Verdict:
        own = self._settings
        try:
            answer = await self._caller.call(
                "GET", own.url, headers=[USER_AGENT, *shown], timeout=own.timeout_sec, most=MAX_DOCUMENT_SIZE
            )
        except CallFailed as error:
            return Undetermined(own.timeout_sec, "other", f"forward_auth.{self._name} gave no answer: {error}")
        verdict = self._verdict(answer)
        seconds = lasts(",".join(answer.headers.get_all("cache-control")))
        self._kept.pop(digest, None)
        if seconds and not isinstance(verdict, Undetermined) and len(answer.body) <= MAX_KEPT_ANSWER:
            while len(self._kept) >= MAX_VERDICTS:
                del self._kept[next(iter(self._kept))]
            self._kept[digest] = _Kept(verdict, self._clock.steady() + seconds)
        return verdict

    def _verdict(self, answer: Answer) -> Verdict:
        own, headers = self._settings, answer.headers
        if 200 <= answer.status < 300:
            scopes = tuple(headers.get(own.scopes_header, "").split()) if own.scopes_header else ()
            subject = headers.get(own.subject_header, "") if own.subject_header else ""
            extra = tuple((name, value) for name in own.response_headers for value in headers.get_all(name))
            identity = Identity(subject, self._name, frozenset(scopes), {"sub": subject}, "forward")
            return Recognised(identity, scopes, extra=extra)
        if answer.status in {401, 403} or 300 < answer.status < 400:
            lines = tuple((name, value) for name in _SHOWN_TO_CLIENT for value in headers.get_all(name))
            reply = Reply(
                answer.status, answer.body, (*lines, ("cache-control", "no-store")), reason="auth.policy_denied"
            )
            return Denied(
                "policy_denied",
                f"forward_auth.{self._name} answered {answer.status}",
                status=answer.status,
                answer=reply,
            )
        return Undetermined(own.timeout_sec, "other", f"forward_auth.{self._name} answered {answer.status}")
