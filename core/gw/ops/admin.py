"""The admin listener: what the control socket knows, over HTTP and behind a token.

It is a gateway of its own with routes that answer by themselves, in the process that gives orders.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Protocol as Interface
from urllib.parse import parse_qs, parse_qsl

import anyio

from gw.config.hosts import address
from gw.config.load import Loaded, load
from gw.described import describe
from gw.filters import Exchange, Reply
from gw.gateway import Gateway
from gw.ops.control import ControlError
from gw.ops.failures import CANNOT_SERVE, NotReloaded, reason
from gw.status import as_json, as_stats, percentiles

if TYPE_CHECKING:
    from gw.ops.alone import Crew

__all__ = ["Admin", "Orders"]

log = logging.getLogger("gw.ops")

Handler = Callable[[Exchange], Awaitable[Any]]

_DENIED: Final = Reply(401, headers=(("www-authenticate", 'Bearer realm="gw admin"'),), reason="gw.admin")


class Orders(Interface):
    """What the operator does for it."""

    crew: Crew

    @property
    def history(self) -> list[dict[str, Any]]: ...
    def status(self) -> dict[str, Any]: ...
    async def stats(self) -> dict[str, Any]: ...
    async def reload(self, by: str, *, confirm_within: float = 0) -> dict[str, Any]: ...
    def confirm(self) -> dict[str, Any]: ...
    async def plan(self, file: str | None) -> dict[str, Any]: ...
    async def set_level(self, level: str) -> None: ...
    async def order(self, plugin: str, name: str, values: Mapping[str, str]) -> dict[str, Any]: ...
    def drain(self) -> None: ...


class Admin:
    """Serves the section `admin`, and goes along with its changes."""

    def __init__(self, operator: Orders) -> None:
        self._operator = operator
        self._settings: Any = None
        self._gateway: Gateway | None = None
        self._changed = anyio.Event()

    def changed(self) -> None:
        """Another configuration is in force."""
        if self._operator.crew.loaded.config.admin != self._settings:
            self._changed.set()
            if self._gateway is not None:
                self._gateway.stop(at_once=True)

    async def run(self) -> None:
        """Serve until cancelled, whenever there is such a section."""
        while True:
            self._changed = anyio.Event()
            self._settings = self._operator.crew.loaded.config.admin
            if self._settings is not None:
                await self._serve()
            await self._changed.wait()

    async def _serve(self) -> None:
        host, port = address(self._settings.bind)
        nothing_else = {"plugins": [], "status": {"health": False, "ready": False, "stats": False}}
        gateway = Gateway(load({"bind_host": host, "bind_port": port, **nothing_else}, environ={}))
        self._gateway = gateway
        for method, path, handler in self._paths():
            gateway.route(path, self._guarded(handler), methods=(method,))
        try:
            await gateway.serve(ready=lambda: log.info("admin listens on %s:%d", *gateway.addresses["main"]))
        except CANNOT_SERVE as error:
            log.error("the admin listener is not there: %s", reason(error))  # noqa: TRY400 - the message says it
        finally:
            self._gateway = None

    def _guarded(self, handler: Handler) -> Callable[[Exchange], Awaitable[Reply]]:
        token = b"Bearer " + self._settings.token.get_secret_value().encode()

        async def answer(ex: Exchange) -> Reply:
            said = ex.request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(said, token):
                return _DENIED
            try:
                with anyio.CancelScope(shield=ex.request.method == "POST"):  # whoever asked may leave; it is done whole
                    found = await handler(ex)
            except (NotReloaded, ControlError) as error:
                return as_json(409, {"error": str(error)})
            return as_json(200, found)

        return answer

    def _paths(self) -> list[tuple[str, str, Handler]]:
        operator = self._operator

        async def status(_: Exchange) -> Any:
            return operator.status()

        async def stats(_: Exchange) -> Any:
            found = await operator.stats()
            if (latency := found.get("latency")) is not None:
                found["latency"] = percentiles(latency["counts"])
            counted = as_stats(await operator.crew.figures())
            return {**found, "figures": counted, "process": operator.status(), "reloads": operator.history}

        async def config(_: Exchange) -> Any:
            return operator.crew.loaded.effective()

        async def routes(_: Exchange) -> Any:
            loaded: Loaded = operator.crew.loaded
            return [asdict(row) for row in describe(loaded)]

        async def reloads(_: Exchange) -> Any:
            return operator.history

        async def plan(_: Exchange) -> Any:
            return await operator.plan(None)

        async def reload(ex: Exchange) -> Any:
            return await operator.reload("admin", confirm_within=_seconds(ex))

        async def confirm(_: Exchange) -> Any:
            return operator.confirm()

        async def drain(_: Exchange) -> Any:
            operator.drain()
            return {}

        async def level(ex: Exchange) -> Any:
            await operator.set_level(_parameter(ex, "level"))
            return {}

        async def order(ex: Exchange) -> Any:
            values = dict(parse_qsl(ex.request.query or "", keep_blank_values=True))
            return await operator.order(ex.params["plugin"], ex.params["order"], values)

        return [
            ("GET", "/status", status),
            ("GET", "/stats", stats),
            ("GET", "/config", config),
            ("GET", "/routes", routes),
            ("GET", "/reloads", reloads),
            ("GET", "/plan", plan),
            ("POST", "/reload", reload),
            ("POST", "/confirm", confirm),
            ("POST", "/drain", drain),
            ("POST", "/log-level", level),
            ("POST", "/plugins/:plugin/:order", order),
        ]


def _parameter(ex: Exchange, name: str) -> str:
    return parse_qs(ex.request.query or "").get(name, [""])[-1]


def _seconds(ex: Exchange) -> float:
    text = _parameter(ex, "confirm_within")
    if text and not text.isdecimal():
        raise ControlError(f"confirm_within is a number of seconds, not {text!r}")
    return float(text or 0)
