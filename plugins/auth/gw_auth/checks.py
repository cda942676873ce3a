"""Rules of the sections that concern one another, upstreams and routes (behaviour 5): what would load and then not protect."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

from gw import Problem, Section
from gw_auth.covered import Covered
from gw_auth.secret import read_secret
from gw_auth.settings import Auth, GatewayPolicy, Leaf, Policy, is_loopback

__all__ = ["problems"]

Where: TypeAlias = tuple[str | int, ...]

_LIBRARIES: Final = ("jwt", "cryptography", "httpcore")
"""What the extra brings; imported only where the section is enabled."""

_NAMES: Final = frozenset({"auth", "python:gw_auth"})
"""How `plugins:` may call us."""


def problems(config: Any) -> Iterator[Problem]:
    """Yield what is wrong with the auth sections of *config*, the whole configuration."""
    section: Auth = config.auth if config.auth is not None else Auth()
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    lacking = [name for name in _LIBRARIES if find_spec(name) is None] if section.enabled else []
    if lacking:
        message = f"needs {' and '.join(map(repr, lacking))}, which is not installed; run pip install 'gw[auth]'"
        yield Problem(("auth", "enabled"), message)
    yield from _issuers(section, upstreams)
    for name, service in section.forward_auth.items():
        yield from _known(("auth", "forward_auth", name, "upstream"), service.upstream, upstreams, "upstream")
        yield from _tls(("auth", "forward_auth", name, "tls"), service.tls)
    for name, basic in section.basic.items():
        yield from _htpasswd(("auth", "basic", name, "users"), basic.users.get_secret_value())
    if section.enabled and section.certificates and not any(map(_asks_for_certificates, config.all_listeners())):
        message = "is of no use: no listener asks clients for certificates; set tls.client_certificates"
        yield Problem(("auth", "certificates"), message, "warning")
    names: dict[str, int] = {}
    for index, policy in enumerate(section.policies):
        at: Where = ("auth", "policies", index)
        if policy.name in names:
            yield Problem((*at, "name"), f"{policy.name!r} is the name of auth.policies[{names[policy.name]}] already")
        names.setdefault(policy.name, index)
        yield from _policy(at, policy, section)
    yield from _inline(config, section)
    for index, route in enumerate(config.routes):
        own = route.auth
        if own is not None:
            yield from _policy(("routes", index, "auth"), own, section)
            yield from _lenient(("routes", index, "auth"), own)
            if own.enabled and not own.public and not section.enabled:
                yield _without_effect(("routes", index, "auth"), section)
        if section.enabled and route.plugins is not None and own is None and _NAMES.isdisjoint(route.plugins):
            message = "leaves out auth, so no policy protects this route; add it, with auth: {public: true} if everybody may pass"
            yield Problem(("routes", index, "plugins"), message, "warning")
    yield from _lenient(("auth",), section)
    yield from _collisions(config, section)


def _lenient(at: Where, section: Section) -> Iterator[Problem]:
    if section.on_error == "allow":
        message = (
            "is allow: where this plugin fails, a request passes without being looked at, its identity headers included"
        )
        yield Problem((*at, "on_error"), message, "warning")


# --- issuers -----------------------------------------------------------------------


def _issuers(section: Auth, upstreams: dict[str, Any]) -> Iterator[Problem]:
    for name, issuer in section.issuers.items():
        at: Where = ("auth", "issuers", name)
        yield from _known((*at, "upstream"), issuer.upstream, upstreams, "upstream")
        yield from _tls((*at, "tls"), issuer.tls)
        own = issuer.introspection
        if issuer.mode == "introspection" and own is not None:
            secret, why = read_secret(own, os.environ)
            if secret is None:
                key = "client_secret_env" if own.client_secret_env else "client_secret_file"
                yield Problem((*at, "introspection", key), f"{why}, so this issuer can never be asked", "warning")
        upstream = upstreams.get(issuer.upstream)
        if upstream is not None and upstream.services() and not upstream.addresses():
            message = f"{issuer.upstream!r} is a service (srv), and issuers are called at a host; name another upstream"
            yield Problem((*at, "upstream"), message)
            continue
        if upstream is not None and not getattr(getattr(upstream, "tls", None), "enabled", False):
            hosts = [endpoint.host for endpoint in upstream.addresses()]
            local = all(map(is_loopback, hosts))
            if issuer.mode == "introspection":
                message = f"{issuer.upstream!r} has no tls, so tokens and the client's secret travel in the clear"
                yield Problem((*at, "upstream"), message, "warning" if local else "error")
            elif not local:
                yield Problem(
                    (*at, "upstream"),
                    f"{issuer.upstream!r} has no tls, so its keys can be replaced on the way",
                    "warning",
                )


def _tls(at: Where, tls: Any) -> Iterator[Problem]:
    if tls.ca_file and not os.path.isfile(tls.ca_file):  # noqa: PTH113  # a question, not a path to work with
        yield Problem((*at, "ca_file"), f"there is no file {tls.ca_file!r}")
    if not tls.verify:
        yield Problem((*at, "verify"), "is false: whoever answers there is believed", "warning")


def _asks_for_certificates(listener: Any) -> bool:
    return bool(listener.tls.enabled and listener.tls.client_certificates.verify != "none")


def _htpasswd(at: Where, text: str) -> Iterator[Problem]:
    try:
        import_module("gw_auth.passwords").read_htpasswd(text)
    except ModuleNotFoundError:
        yield Problem(at, "needs the module 'bcrypt', which is not installed; run pip install 'gw[auth]'")
    except ValueError as error:
        yield Problem(at, str(error))


# --- policies ------------------------------------------------------------------------


def _policy(at: Where, policy: Policy, section: Auth) -> Iterator[Problem]:
    yield from _leaf(at, policy, section)
    for key in ("any", "all"):
        for index, entry in enumerate(getattr(policy, key)):
            yield from _leaf((*at, key, index), entry, section)
            inner = "all" if key == "any" else "any"
            for number, leaf in enumerate(getattr(entry, inner)):
                yield from _leaf((*at, key, index, inner, number), leaf, section)


def _leaf(at: Where, leaf: Leaf | Policy, section: Auth) -> Iterator[Problem]:
    for index, name in enumerate(leaf.issuers):
        yield from _known((*at, "issuers", index), name, section.issuers, "issuer")
    introspecting = [
        name for name in leaf.issuers if name in section.issuers and section.issuers[name].mode == "introspection"
    ]
    if len(introspecting) > 1:
        message = f"has {len(introspecting)} issuers that introspect; each is asked in turn about tokens that do not name theirs"
        yield Problem((*at, "issuers"), message, "warning")
    if isinstance(leaf, Leaf):
        for key in ("api_keys", "basic", "certificates", "forward_auth"):
            yield from _known((*at, key), getattr(leaf, key), getattr(section, key), f"entry of auth.{key}")


def _inline(config: Any, section: Auth) -> Iterator[Problem]:
    for index, upstream in enumerate(config.upstreams):
        policy = upstream.proxy.auth
        if policy is None:
            continue
        at: Where = ("upstreams", index, "proxy", "auth")
        yield from _policy(at, policy, section)
        yield from _lenient(at, policy)
        if not policy.enabled:
            continue
        prefix = upstream.proxy.route_prefix
        used = [route for route in config.routes if upstream.name in dict(route.targets())]
        if not prefix and not used:
            yield Problem(at, "needs a route_prefix, or a route that sends to this upstream")
        if "/:" in prefix or "/*" in prefix:
            yield Problem(at, f"needs a literal route_prefix, not {prefix!r}; use auth in routes for a pattern")
        if not section.enabled:
            yield _without_effect(at, section)
        for number, route in enumerate(config.routes):
            if route in used and len(route.targets()) > 1 and (route.auth is None or not route.auth.enabled):
                message = (
                    f"sends to several upstreams, of which {upstream.name!r} has a policy; give this route its own auth"
                )
                yield Problem(("routes", number), message)


def _without_effect(at: Where, section: Auth) -> Problem:
    """Say that a policy does nothing; a warning only where somebody switched everything off, or wrote for the reference."""
    deliberate = "enabled" in section.model_fields_set or at[0] == "upstreams"
    return Problem(at, "has no effect while auth.enabled is false", "warning" if deliberate else "error")


def _collisions(config: Any, section: Auth) -> Iterator[Problem]:
    """Two policies for the same requests: nothing says which of them counts."""
    seen: list[tuple[Covered[None], str]] = []
    for index, policy in enumerate(section.policies):
        for number, prefix in enumerate(policy.applies_to if policy.enabled else ()):
            at: Where = ("auth", "policies", index, "applies_to", number)
            yield from _collision(at, _covered(policy, prefix), policy.name, seen)
    for index, upstream in enumerate(config.upstreams):
        own = upstream.proxy.auth
        if own is not None and own.enabled and upstream.proxy.route_prefix:
            covered = Covered(upstream.proxy.route_prefix.rstrip("/"), None)
            yield from _collision(
                ("upstreams", index, "proxy", "auth"), covered, own.name or f"inline:{upstream.name}", seen
            )


def _covered(policy: GatewayPolicy, prefix: str) -> Covered[None]:
    return Covered(prefix, None, policy.hosts, policy.methods)


def _collision(
    at: Where, covered: Covered[None], name: str, seen: list[tuple[Covered[None], str]]
) -> Iterator[Problem]:
    for other, whose in seen:
        if (
            covered.prefix == other.prefix
            and _meet(covered.hosts, other.hosts)
            and _meet(covered.methods, other.methods)
        ):
            yield Problem(at, f"covers {covered.prefix or '/'!r}, which policy {whose!r} covers already")
    seen.append((covered, name))


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return not set(one).isdisjoint(other) if one and other else not one and not other


def _known(at: Where, name: str, known: Collection[str], what: str) -> Iterator[Problem]:
    if name and name not in known:
        near = get_close_matches(name, known, 1)
        yield Problem(at, f"there is no {what} {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}")
