"""The filters: who may pass, and what the upstream and the client are told about it.

The way of a token that was seen before is straight: look it up, judge it, add its lines. Everything else waits below.
"""

from __future__ import annotations

import logging
from typing import Final

from gw import IDENTITY, Body, Exchange, Filter, Key, Reply
from gw_auth.counts import NOBODY, Totals
from gw_auth.forward import Forwarding
from gw_auth.policies import Ambiguous, Rule, Table
from gw_auth.tokens import shown
from gw_auth.verdicts import Denied, Recognised, Undetermined, reply_to
from gw_auth.ways import Bearer

__all__ = ["Authentication", "DebugHeaders"]

DECISION: Final[Key[tuple[str, str, str]]] = Key("auth.decision")
"""Decision, issuer and use of the cache, for `debug_response_headers`."""


class Authentication(Filter):
    """Lets requests pass that a policy lets pass, and says who is asking. *rule* is the route's own, else *table* knows."""

    name = "auth"
    body = Body.OBSERVE

    def __init__(
        self,
        rule: Rule | None,
        table: Table,
        forwarding: Forwarding,
        totals: Totals,
        log: logging.Logger,
        *,
        debug: bool = False,
    ) -> None:
        self._rule, self._table, self._forwarding, self._totals = rule, table, forwarding, totals
        self._log, self._debug = log, debug

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        rule = self._rule
        if rule is None:
            try:
                rule = self._table.find(ex)
            except Ambiguous:
                ex.note("deny", "an upstream may read this path as one under another policy")
                return Reply(400, reason="auth.ambiguous_path")
        if rule is None or rule.public:
            ex.request.headers.discard_all(self._forwarding.strip_always)
            return None
        way = rule.way
        assert way is not None
        if way.__class__ is Bearer:
            found = way.quick(ex)
            if found is not None:
                refused = rule.unfit(ex, found) or rule.lacks_scope(found)
                if refused is not None:
                    return self._refuse(ex, rule, refused)
                self._let_in(ex, rule, found)
                return None
        verdict = await way.recognise(ex, rule)
        if isinstance(verdict, Recognised):
            refused = rule.lacks_scope(verdict)
            if refused is not None:
                return self._refuse(ex, rule, refused)
            self._let_in(ex, rule, verdict)
            return None
        if isinstance(verdict, Undetermined) and rule.allow_undetermined and not verdict.firm:
            self._let_through(ex, rule, verdict)
            return None
        return self._refuse(ex, rule, verdict)

    async def on_body(self, ex: Exchange, chunk: bytes, end: bool) -> bytes:
        """Look at no body; but what follows one must not say who is asking either: some servers join it to the head."""
        if end and ex.request.trailers is not None:
            ex.request.trailers.discard_all(self._forwarding.strip_always)
        return chunk

    def _let_in(self, ex: Exchange, rule: Rule, found: Recognised) -> None:
        ex[IDENTITY] = found.identity
        source = found.source
        issuer = "" if source is None else source.name
        rule.rows[issuer].allowed += 1
        self._totals.allowed[issuer].value += 1
        forwarding, headers = self._forwarding, ex.request.headers
        headers.discard_all(forwarding.identity_names)
        headers.extend(forwarding.lines(found))
        if forwarding.raw and source is not None:
            headers.add(forwarding.raw, headers.get("authorization", "")[7:].strip())
        if forwarding.without_authorization:
            headers.discard("authorization")
        if self._debug:
            ex[DECISION] = ("allow", issuer, found.cache)
        if ex.notes is not None:
            ex.note(
                "allow",
                f"policy {rule.name} ({rule.position}): {shown(found.identity.subject)!r} by {found.identity.method}",
            )

    def _let_through(self, ex: Exchange, rule: Rule, verdict: Undetermined) -> None:
        """Pass a request on of which nobody knows whose it is: without an identity, and saying so."""
        forwarding, headers = self._forwarding, ex.request.headers
        headers.discard_all(forwarding.identity_names)
        headers.extend(forwarding.undetermined)
        if forwarding.without_authorization:
            headers.discard("authorization")
        self._count(ex, rule, verdict)

    def _refuse(self, ex: Exchange, rule: Rule, verdict: Denied | Undetermined) -> Reply:
        self._count(ex, rule, verdict)
        return reply_to(verdict, rule.realm, rule.scope_text, rule.bare)

    def _count(self, ex: Exchange, rule: Rule, verdict: Denied | Undetermined) -> None:
        row = rule.rows[verdict.issuer]
        if isinstance(verdict, Denied):
            outcome = "deny"
            row.denied += 1
        else:
            outcome = "undetermined"
            row.undetermined += 1
        self._totals.refuse(outcome, verdict.issuer, verdict.reason)
        if self._debug:
            ex[DECISION] = (outcome, verdict.issuer, verdict.cache)
        ex.note(outcome, f"policy {rule.name} ({rule.position}): {verdict.detail}")
        self._log.info(
            "auth_%s policy=%s issuer=%s reason=%s path=%s request=%s: %s",
            outcome,
            rule.name,
            verdict.issuer or NOBODY,
            verdict.reason,
            ex.matched_path,
            ex.request_id,
            verdict.detail,
        )


class DebugHeaders(Filter):
    """Tells the client what was decided. It stands before the other one, whose answers come by here."""

    name = "auth.debug"

    def on_response_headers(self, ex: Exchange) -> None:
        decided = ex.get(DECISION, None)
        if decided is None or ex.response is None:
            return
        for name, value in zip(("x-auth-decision", "x-auth-issuer", "x-auth-cache"), decided, strict=True):
            ex.response.headers.discard(name)
            if value:
                ex.response.headers.add(name, value)
