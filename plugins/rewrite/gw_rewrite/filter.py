"""The filters: one for each thing that a section asks for, so that a chain has no hook that does nothing.

What they need is made into functions when the configuration loads; what those mean, and refuse, is the business of
`gw_rewrite.templates` and `gw_rewrite.targets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from gw import Exchange, Filter, Headers, Reply
from gw_rewrite import settings
from gw_rewrite.targets import (
    Unfit,
    into_host,
    into_location,
    into_path,
    into_query,
    moved,
    prefix_replaced,
    regex_replaced,
)
from gw_rewrite.templates import Fill, Template, into_field

__all__ = ["FixedAnswer", "Redirection", "RequestRewriting", "ResponseRewriting", "filters"]


def filters(section: settings.Rewrite) -> tuple[Filter, ...]:
    """Return the filters that *section* needs, none where it asks for nothing.

    The one for responses stands first: answers travel back only through filters that the request had reached, and
    ours are to have these headers too.
    """
    made: list[Filter] = []
    if _edits(section.response.headers):
        made.append(ResponseRewriting(section))
    if section.respond is not None:
        made.append(FixedAnswer(section.respond))
    if section.redirect is not None:
        made.append(Redirection(section.redirect))
    if section.path or section.host or _edits(section.query) or _edits(section.request.headers):
        made.append(RequestRewriting(section))
    return tuple(made)


def _edits(group: settings.RequestFields | settings.ResponseFields | settings.Query) -> bool:
    return any(getattr(group, key) for key in type(group).model_fields)


# --- header lines ------------------------------------------------------------


def _set(headers: Headers, name: str, value: str) -> None:
    if value:
        headers.set(name, value)
    else:
        headers.discard(name)  # what the other side wrote there must not pass for ours


def _append(headers: Headers, name: str, value: str) -> None:
    if value:
        headers.set(name, ", ".join([*filter(None, headers.get_all(name)), value]))


def _add(headers: Headers, name: str, value: str) -> None:
    if value:
        headers.add(name, value)


Edit: TypeAlias = tuple[Callable[[Headers, str, str], None], str, str | Fill]


class _FieldEdits:
    """Edits of header lines: `values` before anything has changed, then `apply`."""

    __slots__ = ("_edits", "_remove")

    def __init__(self, asked: settings.RequestFields | settings.ResponseFields) -> None:
        def made(how: Callable[[Headers, str, str], None], given: Mapping[str, Template]) -> tuple[Edit, ...]:
            return tuple((how, name, into_field(template)) for name, template in given.items())

        self._remove = asked.remove
        self._edits = made(_set, asked.set) + made(_append, asked.append) + made(_add, asked.add)

    def values(self, ex: Exchange) -> list[str]:
        return [value if isinstance(value, str) else value(ex).strip(" \t") for _, _, value in self._edits]

    def apply(self, headers: Headers, values: list[str]) -> None:
        for name in self._remove:
            headers.discard(name)
        for (edit, name, _), value in zip(self._edits, values, strict=True):
            edit(headers, name, value)


# --- requests ----------------------------------------------------------------


def _path(asked: settings.Path) -> Fill:
    if asked.prefix is not None:
        return prefix_replaced(asked.prefix.from_, asked.prefix.to)
    if asked.regex is not None:
        return regex_replaced(asked.regex.match, asked.regex.replace)
    assert asked.template is not None
    return into_path(asked.template)


def _unfit(ex: Exchange, error: Unfit) -> Reply:
    ex.note("unfit", str(error))
    return Reply(400, reason="rewrite.unfit")


class RequestRewriting(Filter):
    """Path, host, query and headers of requests. All templates are filled in before anything is changed."""

    name = "rewrite.request"

    def __init__(self, section: settings.Rewrite) -> None:
        query, fields = section.query, section.request.headers
        self._path = _path(section.path) if section.path is not None else None
        self._host = into_host(section.host) if section.host is not None else None
        self._query = into_query(query.remove, query.set, query.add) if _edits(query) else None
        self._fields = _FieldEdits(fields) if _edits(fields) else None

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        request = ex.request
        path, host, query = request.path, request.host, request.query
        try:
            if self._path is not None and path != "*":  # OPTIONS * asks about no path
                path = self._path(ex)
            if self._host is not None:
                host = self._host(ex)
        except Unfit as error:
            return _unfit(ex, error)
        if self._query is not None:
            query = self._query(ex)
        if self._fields is not None:
            self._fields.apply(request.headers, self._fields.values(ex))
        if ex.notes is not None and (path, host, query) != (request.path, request.host, request.query):
            ex.note("rewritten", f"{host}{path}{'' if query is None else '?' + query}")
        request.path, request.host, request.query = path, host, query
        return None


class Redirection(Filter):
    """An answer that sends the client elsewhere, unless it is there already."""

    name = "rewrite.redirect"

    def __init__(self, asked: settings.Redirect) -> None:
        self._status = asked.status
        if asked.to is not None:
            self._where = into_location(asked.to, keep_query=asked.keep_query)
        else:
            self._where = moved(asked.scheme, asked.host, keep_query=asked.keep_query)

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        if ex.request.path == "*":  # OPTIONS * asks about no path that could be elsewhere
            return None
        try:
            location = self._where(ex)
        except Unfit as error:
            return _unfit(ex, error)
        if location is None:
            return None
        return Reply(self._status, headers=(("location", location),), reason="rewrite.redirect")


class FixedAnswer(Filter):
    """Always the same answer: one object, made when the configuration loads."""

    name = "rewrite.respond"

    def __init__(self, asked: settings.Respond) -> None:
        headers = tuple(asked.headers.items())
        body = None if asked.body is None else asked.body.encode()
        if body is not None:
            headers = (("content-type", asked.content_type), *headers)
        self._reply = Reply(asked.status, body, headers, "rewrite.respond")

    async def on_request_headers(self, ex: Exchange) -> Reply | None:
        return self._reply


# --- responses ---------------------------------------------------------------


class ResponseRewriting(Filter):
    """Headers of all responses that pass: the upstream's, and the gateway's own."""

    name = "rewrite.response"

    def __init__(self, section: settings.Rewrite) -> None:
        self._fields = _FieldEdits(section.response.headers)

    def on_response_headers(self, ex: Exchange) -> None:
        assert ex.response is not None
        self._fields.apply(ex.response.headers, self._fields.values(ex))
