"""What the section ``rewrite`` may say. Everything that can be wrong with it is found here, when it loads.

The models hold templates as they were written; functions are made of them in `gw_rewrite.filter`. What concerns
routes and upstreams too is checked in `gw_rewrite.checks`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, model_validator

from gw import Section
from gw_rewrite.targets import as_host, as_location, as_path, check_host, check_path, regex_replaced
from gw_rewrite.templates import Template, as_field, for_requests

__all__ = [
    "Path",
    "Prefix",
    "Query",
    "Redirect",
    "Regex",
    "Request",
    "RequestFields",
    "Respond",
    "Response",
    "ResponseFields",
    "Rewrite",
]

Names = TypeVar("Names", bound=Iterable[str])

# --- names and values --------------------------------------------------------

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)

_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
    }
)
_FORWARDED: Final = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"})
_SINGLE: Final = frozenset({"authorization", "content-disposition", "content-range", "content-type"})
"""Fields of which the gateway refuses a second line from anyone, itself included."""


def _field_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if name.lower() in _FRAMING:
        raise ValueError(f"{name} says where a message ends, which only the gateway may")
    if name.lower() in _HOP_BY_HOP:
        raise ValueError(f"{name} is about one connection (RFC 9110 section 7.6.1), which belongs to the gateway")
    return name


def _request_field_name(name: str) -> str:
    if name.lower() == "host":
        raise ValueError(f"{name} has a setting of its own: rewrite.host")
    if name.lower() in _FORWARDED:
        raise ValueError(f"{name} is written by the gateway; see header_rewrite of the route or the upstream")
    if name.lower() == "expect":
        raise ValueError(f"{name} is settled between the client, the gateway and the upstream")
    return name


def _may_have_lines(name: str) -> str:
    if name.lower() in _SINGLE:
        raise ValueError(f"{name} has one value; use set")
    return name


def _may_be_joined(name: str) -> str:
    if name.lower() == "set-cookie":
        raise ValueError(f"{name} cannot be joined with commas (RFC 9110 section 5.3); use add")
    return _may_have_lines(name)


def _reply_field_name(name: str) -> str:
    if name.lower() == "content-type":
        raise ValueError(f"{name} has a setting of its own: content_type")
    return name


def _fixed_field(value: str) -> str:
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise ValueError("must be printable ASCII without spaces around it")
    return value


def _distinct(names: Names) -> Names:
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise ValueError(f"names {name!r} twice; the case of letters does not count")
        seen.add(name.lower())
    return names


def _constant_host(host: str) -> str:
    return check_host(host).lower()


def _redirection(status: int) -> int:
    if status not in _REDIRECTIONS:
        raise ValueError(f"must be one of {', '.join(map(str, _REDIRECTIONS))}, not {status}")
    return status


_REDIRECTIONS: Final = (301, 302, 303, 307, 308)

FieldName = Annotated[str, AfterValidator(_field_name)]
RequestFieldName = Annotated[FieldName, AfterValidator(_request_field_name)]
FieldValue = Annotated[Template, AfterValidator(as_field)]
RequestFieldValue = Annotated[FieldValue, AfterValidator(for_requests)]

Removed = Annotated[tuple[FieldName, ...], AfterValidator(_distinct)]
Set = Annotated[dict[FieldName, FieldValue], AfterValidator(_distinct)]
Appended = Annotated[dict[Annotated[FieldName, AfterValidator(_may_be_joined)], FieldValue], AfterValidator(_distinct)]
Added = Annotated[dict[Annotated[FieldName, AfterValidator(_may_have_lines)], FieldValue], AfterValidator(_distinct)]
RequestRemoved = Annotated[tuple[RequestFieldName, ...], AfterValidator(_distinct)]
RequestSet = Annotated[dict[RequestFieldName, RequestFieldValue], AfterValidator(_distinct)]
RequestAppended = Annotated[
    dict[Annotated[RequestFieldName, AfterValidator(_may_be_joined)], RequestFieldValue], AfterValidator(_distinct)
]
RequestAdded = Annotated[
    dict[Annotated[RequestFieldName, AfterValidator(_may_have_lines)], RequestFieldValue], AfterValidator(_distinct)
]
FixedFields = Annotated[
    dict[Annotated[FieldName, AfterValidator(_reply_field_name)], Annotated[str, AfterValidator(_fixed_field)]],
    AfterValidator(_distinct),
]

PathText = Annotated[str, AfterValidator(check_path)]
PathTemplate = Annotated[Template, AfterValidator(for_requests), AfterValidator(as_path)]
HostTemplate = Annotated[Template, AfterValidator(for_requests), AfterValidator(as_host)]
HostText = Annotated[str, AfterValidator(_constant_host)]
Location = Annotated[Template, AfterValidator(for_requests), AfterValidator(as_location)]
NonEmpty = Annotated[str, Field(min_length=1)]
ParameterValue = Annotated[Template, AfterValidator(for_requests)]
Redirection = Annotated[int, AfterValidator(_redirection), Field(json_schema_extra={"enum": list(_REDIRECTIONS)})]
AnswerStatus = Annotated[int, Field(ge=200, le=599)]
ContentType = Annotated[str, AfterValidator(_fixed_field), Field(min_length=1)]


class Group(BaseModel):
    """What all groups of keys have in common: unknown keys are errors, values do not change."""

    model_config = Section.model_config


# --- headers -----------------------------------------------------------------


class RequestFields(Group):
    """Edits of header lines, in this order: remove, set, append, add."""

    remove: RequestRemoved = ()
    """Names of which every line goes."""
    set: RequestSet = Field(default_factory=dict)
    """Name to value: instead of all lines of that name. An empty value leaves none."""
    append: RequestAppended = Field(default_factory=dict)
    """Name to value: at the end of the value that is there, after a comma."""
    add: RequestAdded = Field(default_factory=dict)
    """Name to value: one more line."""


class ResponseFields(Group):
    """The same for responses, whose templates may also use `${status}` and `${response_header.NAME}`."""

    remove: Removed = ()
    """Names of which every line goes."""
    set: Set = Field(default_factory=dict)
    """Name to value: instead of all lines of that name. An empty value leaves none."""
    append: Appended = Field(default_factory=dict)
    """Name to value: at the end of the value that is there, after a comma."""
    add: Added = Field(default_factory=dict)
    """Name to value: one more line."""


class Request(Group):
    """What changes on the way to the upstream, beside the target."""

    headers: RequestFields = RequestFields()
    """Edits of the request's headers."""


class Response(Group):
    """What changes on the way to the client."""

    headers: ResponseFields = ResponseFields()
    """Edits of the response's headers, the gateway's own answers included."""


# --- targets -----------------------------------------------------------------


class Prefix(Group):
    """A prefix for another; it ends where a segment ends."""

    from_: PathText = Field(alias="from")
    """The prefix to replace: `/a` is one of `/a` and `/a/x`, but not of `/ab`. Other paths stay as they are."""
    to: PathText
    """What to put there; `/` removes the prefix."""

    @model_validator(mode="after")
    def _without_slash(self) -> Prefix:
        for key, path in (("from", self.from_), ("to", self.to)):
            if path != "/" and path.endswith("/"):
                raise ValueError(
                    f"{key} must not end with '/': a prefix ends where a segment does; write {path[:-1]!r}"
                )
        return self


class Regex(Group):
    """A regular expression, and what replaces all that it matches."""

    match: NonEmpty
    """Found anywhere in the path, as often as it is there; `^` and `$` tie it down."""
    replace: str
    r"""What to put there: `\1` and `\g<name>` stand for groups."""

    @model_validator(mode="after")
    def _fits(self) -> Regex:
        regex_replaced(self.match, self.replace)
        return self


class Path(Group):
    """Another path: exactly one of the keys."""

    prefix: Prefix | None = None
    """A prefix for another."""
    template: PathTemplate | None = None
    """A whole path, such as `/v2/${path.id}`."""
    regex: Regex | None = None
    """What a regular expression matches, for something else."""

    @model_validator(mode="after")
    def _one_of(self) -> Path:
        if [self.prefix, self.template, self.regex].count(None) != 2:
            raise ValueError("must have exactly one of prefix, template, regex")
        return self


class Query(Group):
    """Edits of the query, in this order: remove, set, add. Other parameters stay as they were sent."""

    remove: tuple[NonEmpty, ...] = ()
    """Names of which every parameter goes."""
    set: dict[NonEmpty, ParameterValue] = Field(default_factory=dict)
    """Name to value: instead of all parameters of that name. An empty value leaves none."""
    add: dict[NonEmpty, ParameterValue] = Field(default_factory=dict)
    """Name to value: one more parameter, at the end."""


# --- answers -----------------------------------------------------------------


class Redirect(Group):
    """Send the client elsewhere: always, by `to`, or only where scheme or host differ."""

    to: Location | None = None
    """A URL, or a path on the same host. What is sent is `Location`."""
    scheme: Literal["http", "https"] | None = None
    """The same URL under this scheme, unless the client used it."""
    host: HostText | None = None
    """The same URL on this host, unless the client asked for it; without a port, any port will do."""
    status: Redirection = 308
    """301, 302, 303, 307 or 308."""
    keep_query: bool = True
    """Whether the request's query goes along, after one that `to` has."""

    @model_validator(mode="after")
    def _one_form(self) -> Redirect:
        moves = self.scheme is not None or self.host is not None
        if (self.to is not None) == moves:
            raise ValueError("must have either to, or scheme or host or both")
        return self


class Respond(Group):
    """Answer here, with always the same."""

    status: AnswerStatus = 200
    """The status code."""
    body: str | None = None
    """The body; left out, the gateway's own words for the status."""
    content_type: ContentType = "text/plain; charset=utf-8"
    """The type of `body`."""
    headers: FixedFields = Field(default_factory=dict)
    """More header lines, as they are: no templates."""

    @model_validator(mode="after")
    def _body_fits(self) -> Respond:
        if self.body is not None and self.status in {204, 205, 304}:
            raise ValueError(f"has a body, which a {self.status} cannot")
        if self.body is None and "content_type" in self.model_fields_set:
            raise ValueError("has content_type, which means nothing without body")
        return self


class Rewrite(Section):
    """Changes of requests and responses, and answers without an upstream. A route's section replaces the gateway's."""

    request: Request = Request()
    """Headers toward the upstream."""
    response: Response = Response()
    """Headers toward the client."""
    path: Path | None = None
    """Another path."""
    host: HostTemplate | None = None
    """Another host, perhaps with a port."""
    query: Query = Query()
    """Other query parameters."""
    redirect: Redirect | None = None
    """A redirect instead of an upstream's answer."""
    respond: Respond | None = None
    """A fixed answer instead of an upstream's."""

    @model_validator(mode="after")
    def _no_idle_keys(self) -> Rewrite:
        if self.redirect is not None and self.respond is not None:
            raise ValueError("has redirect and respond; a request has one answer")
        answer = "respond" if self.respond is not None else None
        if self.redirect is not None and self.redirect.to is not None:
            answer = "redirect.to"
        if answer is not None:
            idle = [key for key in ("request", "path", "host", "query") if key in self.model_fields_set]
            if idle:
                raise ValueError(
                    f"has {answer}, which answers every request, so {' and '.join(idle)} would never be used"
                )
        return self
