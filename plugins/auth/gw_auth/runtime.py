"""A configuration's issuers, ways in and policies, made once and shared by its routes; and the work behind them.

What outlives a reload (keys, remembered tokens, counters) is asked for under a key that says whose it is and by which
rules it was made: where one of those changes, it begins anew.
"""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import anyio

from gw import Caller, Context, Filter, RouteInfo
from gw_auth import ways
from gw_auth.asking import Asking
from gw_auth.certificates import Certified
from gw_auth.counts import IssuerCounts, Rows, Totals
from gw_auth.covered import Covered
from gw_auth.filter import Authentication, DebugHeaders
from gw_auth.forward import Forwarding
from gw_auth.introspection import Answers, IntrospectedIssuer
from gw_auth.issuers import JwtIssuer, Memory
from gw_auth.policies import Rule, Table
from gw_auth.providers import Clock, Keeping, Provider
from gw_auth.secret import digest_key, read_secret
from gw_auth.settings import Auth, Issuer, IssuerTls, Leaf, Policy

__all__ = ["Guard"]


class Guard:
    """All that one configuration has under ``auth``."""

    def __init__(self, ctx: Context, section: Auth) -> None:
        self._ctx, self._section, self._clock = ctx, section, Clock()
        self._callers: dict[tuple[str, IssuerTls], Caller] = {}
        self.totals: Totals = ctx.shared("totals", lambda: Totals(ctx.figures))
        self.issuers: dict[str, JwtIssuer | IntrospectedIssuer] = {
            name: self._issuer(name, issuer) for name, issuer in section.issuers.items()
        }
        self._forwarding = Forwarding(
            section.forward,
            ctx.log,
            tuple(header for service in section.forward_auth.values() for header in service.response_headers),
        )
        self._ways: dict[tuple[str, object], ways.Way] = {}
        self.rules: list[Rule] = []
        self._inline: dict[str, Rule] = {}
        covered = [
            Covered(prefix, rule, policy.hosts, policy.methods)
            for index, policy in enumerate(section.policies)
            if policy.enabled
            for rule in (self._rule(policy, policy.name, ("auth", "policies", index)),)
            for prefix in policy.applies_to
        ]
        for index, upstream in enumerate(ctx.config.upstreams):
            policy = upstream.proxy.auth
            if policy is not None and policy.enabled:
                rule = self._rule(
                    policy, policy.name or f"inline:{upstream.name}", ("upstreams", index, "proxy", "auth")
                )
                self._inline[upstream.name] = rule
                if upstream.proxy.route_prefix:
                    covered.append(Covered(upstream.proxy.route_prefix.rstrip("/"), rule))
        self.table = Table(covered)
        self._routes = {name: index for index, name in enumerate(ctx.config.route_names())}

    def filters(self, route: RouteInfo, levels: tuple[Any, Any, Any]) -> Sequence[Filter]:
        """Return the filters of *route*, whose settings at the three levels are *levels*."""
        _, inline, own = levels
        rule = None
        if own is not None and own.enabled:
            index = self._routes[route.name]
            rule = self._rule(own, own.name or f"route:{route.name}", ("routes", index, "auth"))
        elif inline is not None and inline.enabled and route.name in self._routes:
            rule = self._inline[route.upstreams[0]]
        debug = self._section.debug_response_headers
        made = Authentication(rule, self.table, self._forwarding, self.totals, self._ctx.log, debug=debug)
        return (DebugHeaders(), made) if debug else (made,)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep keys and endpoints fresh meanwhile."""
        async with anyio.create_task_group() as tasks:
            for issuer in self.issuers.values():
                tasks.start_soon(issuer.provider.run)
            yield
            tasks.cancel_scope.cancel()

    # --- parts ------------------------------------------------------------------------------

    def _caller(self, upstream: str, tls: IssuerTls) -> Caller:
        if (upstream, tls) not in self._callers:
            self._callers[upstream, tls] = self._ctx.caller(upstream, tls=None if upstream else _ssl(tls))
        return self._callers[upstream, tls]

    def _issuer(self, name: str, settings: Issuer) -> JwtIssuer | IntrospectedIssuer:
        ctx, clock, own = self._ctx, self._clock, settings.introspection
        whom: tuple[object, ...] = (
            *(
                name,
                settings.issuer_url,
                settings.mode,
                settings.discovery,
                settings.jwks_uri,
                settings.upstream,
                settings.tls,
            ),
            *(("", "") if own is None else (own.endpoint, own.client_id)),
        )
        caller = self._caller(settings.upstream, settings.tls)
        keeping = ctx.shared(("provider", *whom), lambda: Keeping(IssuerCounts(ctx.figures, name)))
        provider = Provider(name, settings, keeping, caller, clock, ctx.log)
        rules = (
            *whom,
            settings.algorithms,
            settings.token_types,
            settings.leeway_sec,
            settings.certificate_binding,
        )
        if settings.mode == "jwt":
            return JwtIssuer(provider, ctx.shared(("memory", *rules), Memory), clock)
        assert own is not None
        secret, why = read_secret(own, os.environ)
        if secret is None:
            ctx.log.error("issuer %s is never ready: %s", name, why)
        key = ctx.once("digest key", self._digest_key)
        answers = ctx.shared(("answers", *rules, own.signed, key), Answers)
        return IntrospectedIssuer(provider, caller, answers, secret, key, clock, ctx.log)

    def _digest_key(self) -> bytes:
        variable = self._section.hmac_cache_key_env
        if variable and os.environ.get(variable):
            return digest_key(os.environ[variable])
        made: bytes = self._ctx.shared("digest key", lambda: secrets.token_bytes(32))
        return made

    def _rule(self, policy: Policy, name: str, path: tuple[str | int, ...]) -> Rule:
        rows = self._ctx.shared(("policy", name), Rows)
        rule = Rule.of(policy, name, self._way(policy), self._ctx.position(path), rows)
        self.rules.append(rule)
        return rule

    def _way(self, policy: Policy) -> ways.Way | None:
        if policy.public:
            return None
        if policy.issuers:
            return self._leaf(policy)
        if policy.any:
            inner: list[ways.Way] = [
                ways.All([self._leaf(each) for each in entry.all]) if entry.all else self._leaf(entry)
                for entry in policy.any
            ]
            return ways.Any(inner, final=True)
        return ways.All(
            [
                ways.Any([self._leaf(each) for each in entry.any], final=False) if entry.any else self._leaf(entry)
                for entry in policy.all
            ]
        )

    def _leaf(self, leaf: Leaf | Policy) -> ways.Way:
        key, value = next((key, getattr(leaf, key)) for key in Leaf.model_fields if getattr(leaf, key))
        if (key, value) not in self._ways:
            self._ways[key, value] = self._made(key, value)
        return self._ways[key, value]

    def _made(self, key: str, value: Any) -> ways.Way:
        section = self._section
        made: ways.Way
        if key == "issuers":
            made = ways.Bearer([self.issuers[name] for name in value])
        elif key == "api_keys":
            made = ways.Keyed(value, section.api_keys[value])
        elif key == "basic":  # bcrypt is needed only here
            made = import_module("gw_auth.passwords").Passwords(value, section.basic[value], self._clock)
        elif key == "certificates":
            made = Certified(value, section.certificates[value])
        else:
            service = section.forward_auth[value]
            made = Asking(value, service, self._caller(service.upstream, service.tls), self._clock)
        return made

    # --- for operators -------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Return what `/stats` says under ``auth`` (behaviour 19)."""
        totals = self.totals
        sums: dict[str, int] = {}
        for issuer in self.issuers.values():
            for key, count in issuer.provider.keeping.counts.introspection().items():
                sums[key] = sums.get(key, 0) + count
        return {
            "enabled": self._section.enabled,
            "debug_response_headers": self._section.debug_response_headers,
            "total_allowed": totals.of("allow"),
            "total_denied": totals.of("deny"),
            "total_undetermined": totals.of("undetermined"),
            "policy_count": len(self.table),
            "introspection": sums,
            "requests": [
                {"outcome": outcome, "issuer": issuer, "reason": reason, "count": count}
                for (outcome, issuer, reason), count in sorted(totals.requests().items())
            ],
            "per_policy": [
                {"issuer": issuer, "policy": rule.name, **row.as_dict()}
                for rule in self.rules
                for issuer, row in rule.rows.items()
            ],
            "issuers": {name: self._issuer_stats(issuer) for name, issuer in self.issuers.items()},
        }

    def _issuer_stats(self, issuer: JwtIssuer | IntrospectedIssuer) -> dict[str, Any]:
        provider = issuer.provider
        keeping, counts = provider.keeping, provider.keeping.counts
        found: dict[str, Any] = {
            "mode": provider.settings.mode,
            "ready": provider.ready,
            "jwks": {"key_count": 0 if keeping.keys is None else len(keeping.keys), **counts.jwks()},
            "last_jwks_refresh_epoch": keeping.keys_epoch,
            "last_discovery_refresh_epoch": keeping.discovery_epoch,
            "per_policy": [
                {"policy": rule.name, **rule.rows[issuer.name].as_dict()}
                for rule in self.rules
                if issuer.name in rule.rows
            ],
        }
        if isinstance(issuer, IntrospectedIssuer):
            found["introspection"] = {"cache_entries": len(issuer.answers.kept), **counts.introspection()}
        else:
            found["remembered_tokens"] = len(issuer.memory)
        return found


# --- files ---------------------------------------------------------------------------


def _ssl(tls: IssuerTls) -> ssl.SSLContext | None:
    if tls.verify and not tls.ca_file:
        return None
    context = ssl.create_default_context(cafile=tls.ca_file or None)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
