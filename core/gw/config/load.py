"""From a source to a configuration that holds, or to everything that is wrong with it.

The order, later wins: built-in defaults, the document, environment variables, command line. Then the plugins that
are named are loaded, and the whole is checked against the model that they and the core make up. Nothing is half-loaded.

Types are those of JSON, strictly: ``8080`` is no text, ``"8080"`` no number. Text that comes from outside the document
is the exception: where a number or a boolean is wanted, it is read as one. ``{file: path}`` stands for the text of a file
wherever text is wanted.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from gw.config import rules
from gw.config.document import Document, adopt, read
from gw.config.errors import ConfigError, Located, Path, did_you_mean, explain
from gw.config.model import GatewayConfig, RouteConfig, is_free, with_sections
from gw.config.upstream import UpstreamConfig
from gw.hookspecs import Problem, Section
from gw.limits import MAX_VALUE_FILE_SIZE
from gw.plugins import PluginError, PluginSet, standard

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["Loaded", "load", "load_plugins", "schema", "unpack"]

Source = File | Mapping[str, Any] | None
"""A file, the values themselves, or nothing but the defaults."""

MASK = "**********"
"""What is shown for a secret, by pydantic and by us."""

PREFIXES = ("GW_", "REACTOR_")
"""Of environment variables; the first that is set counts."""

VARIABLES: Mapping[str, Path] = {
    "BIND_HOST": ("bind_host",),
    "BIND_PORT": ("bind_port",),
    "DNS_LOOKUP_FAMILY": ("dns", "lookup_family"),
    "DNS_OVERALL_TIMEOUT_MS": ("dns", "overall_timeout_ms"),
    "DNS_RESOLVE_TIMEOUT_MS": ("dns", "resolve_timeout_ms"),
    "DNS_STALE_ON_ERROR": ("dns", "stale_on_error"),
    "HTTP2_ENABLED": ("http2", "enabled"),
    "HTTP2_ENABLE_PUSH": ("http2", "enable_push"),
    "HTTP2_INITIAL_WINDOW_SIZE": ("http2", "initial_window_size"),
    "HTTP2_MAX_CONCURRENT_STREAMS": ("http2", "max_concurrent_streams"),
    "HTTP2_MAX_FRAME_SIZE": ("http2", "max_frame_size"),
    "HTTP2_MAX_HEADER_LIST_SIZE": ("http2", "max_header_list_size"),
    "IDLE_TIMEOUT": ("idle_timeout_sec",),
    "LOG_FILE": ("log", "file"),
    "LOG_LEVEL": ("log", "level"),
    "MAX_CONNECTIONS": ("max_connections",),
    "RATE_LIMIT_DRY_RUN": ("rate_limit", "dry_run"),
    "RATE_LIMIT_ENABLED": ("rate_limit", "enabled"),
    "RATE_LIMIT_STATUS_CODE": ("rate_limit", "status_code"),
    "REQUEST_TIMEOUT": ("request_timeout_sec",),
    "SHUTDOWN_DRAIN_TIMEOUT": ("shutdown_drain_timeout_sec",),
    "TLS_CERT": ("tls", "cert_file"),
    "TLS_ENABLED": ("tls", "enabled"),
    "TLS_KEY": ("tls", "key_file"),
    "WORKER_THREADS": ("workers",),
    "WORKERS": ("workers",),
}

"""The other variables of behaviour 3.1, whose keys this version does not have."""

_BOOLEANS = {**dict.fromkeys(("1", "true", "yes"), True), **dict.fromkeys(("0", "false", "no"), False)}
_INTEGER = re.compile(r"[-+]?[0-9]{1,19}", re.ASCII)
_NUMBER = re.compile(r"[-+]?[0-9]{1,19}(?:\.[0-9]{1,19})?", re.ASCII)

Level = Literal["gateway", "upstream", "route"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was found good, with what is needed to bring it to life."""

    config: GatewayConfig
    plugins: PluginSet
    warnings: tuple[Located, ...]
    again: Callable[..., Loaded]
    """Load from the same source, or from the one given, with the same environment and options. Raises `ConfigError`."""
    _document: Document

    def __repr__(self) -> str:
        return f"<Loaded {self._document.name}, plugins: {', '.join(self.plugins.names) or 'none'}>"  # no values: some are secret

    def pack(self) -> bytes:
        """Return all that `unpack` needs to make the same configuration in another process, secrets included.

        Nothing is read again there: neither files nor the environment, which may have changed meanwhile. The bytes go
        from a supervisor to the workers that it started, over sockets that nobody else can open, and never back.
        """
        return pickle.dumps(replace(self._document, problems=[]))

    def position(self, path: Path) -> str:
        """Say where *path* was set, as ``file:line:column``, or where it would stand."""
        return self._document.locate(Problem(path, "")).position

    def section(self, plugin: str, level: Level, of: UpstreamConfig | RouteConfig | None = None) -> Section | None:
        """Return the settings of *plugin* at *level*, *of* an upstream or a route; `None` where there are none."""
        sections = self.plugins[plugin].sections
        if sections is None or getattr(sections, level) is None:
            return None
        holder: Any = self.config if of is None else of
        if level == "upstream" and sections.in_proxy:
            holder = holder.proxy
        found: Section | None = getattr(holder, sections.name)
        return found

    def refuse(self, problems: Iterable[Problem]) -> ConfigError:
        """Return the error that reports *problems* of this configuration, which were found later on."""
        return ConfigError(self._document.locate(problem) for problem in problems)

    def effective(self) -> dict[str, Any]:
        """Return every key with its value, ready for JSON. Secrets are masked, values from outside are as written."""
        tree: dict[str, Any] = self.config.model_dump(mode="json", by_alias=True)
        for upstream in tree["upstreams"]:
            if upstream["endpoints"] is not None:
                del upstream["host"], upstream["port"]
        shown = Document("", File(), tree, self._document.root)
        for path, written in self._document.outside.items():
            if written is None:
                continue
            value, current = self._document.get(path), shown.get(path)
            # Under a key stands what was made of it; an item may have been sorted away, and another one stands there.
            if current in {value, MASK} if isinstance(path[-1], int) else current is not None:
                shown.put(path, written)
            else:
                _mask(shown, path[:-1], value, written)
        return tree


def load(
    source: Source,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    plugins: PluginSet | None = None,
) -> Loaded:
    """Load a configuration, or raise `ConfigError` with all that is wrong with it.

    *environ* is `os.environ` unless given. *overrides* are values from the command line by dotted key, such as ``log.level``. *plugins*
    are used, if given, instead of loading those that the configuration names.
    """
    environ = os.environ if environ is None else environ

    def again(other: Source = source, given: PluginSet | None = plugins) -> Loaded:
        return load(other, environ=environ, overrides=overrides, plugins=given)

    document = _open(source, environ)
    _set_from_environment(document, environ)
    for key, value in (overrides or {}).items():
        path = tuple(key.split("."))
        document.put(path, value)
        document.origins[path] = "command line"
        document.outside.pop(path, None)
    if ("workers",) in document.origins:  # whichever name the document has for it
        document.tree.pop("worker_threads", None)

    refused: list[str] = []
    if plugins is None:
        plugins, refused = _load_plugins(document)
    model = _model(plugins)
    config, problems = _validate(model, document, plugins, refused)
    problems += rules.names(document.tree, plugins)
    if config is not None:
        problems += rules.values(config)
        for plugin in plugins:
            problems += _checked(plugins, plugin.name, config)

    broken = {each.problem.path for each in document.problems if each.problem.path}
    found = document.problems + [document.locate(_hide(each, document)) for each in problems if each.path not in broken]
    if config is None or any(each.problem.level == "error" for each in found):
        raise ConfigError(found)
    return Loaded(config, plugins, tuple(found), again, document)


def unpack(data: bytes) -> Loaded:
    """Return the configuration that `Loaded.pack` made *data* of. Only for what our own supervisor sent: it is pickled.

    Raises `ConfigError`, for instance where a plugin was removed meanwhile. It cannot be loaded `again`.
    """
    document: Document = pickle.loads(data)  # noqa: S301 - our parent's, as `pack` says
    plugins, refused = _load_plugins(document)
    config, problems = _validate(_model(plugins), document, plugins, refused)
    if config is None or document.problems:
        raise ConfigError([*document.problems, *map(document.locate, problems)])
    return Loaded(config, plugins, (), _only_once, document)


def _only_once() -> Loaded:
    raise ConfigError([Located(Problem((), "is loaded by the supervisor, and cannot be read again here"), "worker")])


def load_plugins(source: Source, *, environ: Mapping[str, str] | None = None) -> PluginSet:
    """Load the plugins that a configuration names, whatever else it says. Raises `ConfigError`."""
    document = _open(source, os.environ if environ is None else environ)
    plugins, refused = _load_plugins(document)
    if refused:
        raise ConfigError(document.problems)
    return plugins


def _load_plugins(document: Document) -> tuple[PluginSet, list[str]]:
    """Load what `plugins:` names; return also the names of those that were refused, and add why to the problems."""
    plugins = PluginSet()
    refused: list[str] = []
    listed = document.tree.get("plugins")
    names: list[tuple[Path, str]] = [(("plugins",), name) for name in standard()]
    if isinstance(listed, list):
        names = [(("plugins", index), name) for index, name in enumerate(listed) if isinstance(name, str)]
    for path, name in names:
        try:
            plugin = plugins.add(name)
        except PluginError as error:
            refused.append(name)
            document.problems.append(document.locate(Problem(path, str(error))))
            continue
        if plugin.sections is not None and not is_free(plugin.sections.name):
            message = f"plugin {name!r} calls its section {plugin.sections.name!r}, which no plugin may"
            document.problems.append(document.locate(Problem(path, message)))
    return plugins, refused


def schema(plugins: PluginSet) -> dict[str, Any]:
    """Return the JSON Schema of a configuration for the core and *plugins*."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _model(plugins).model_json_schema()


def _model(plugins: PluginSet) -> type[GatewayConfig]:
    owned = (plugin.sections for plugin in plugins if plugin.sections is not None)
    return with_sections(sections for sections in owned if is_free(sections.name))


def _mask(shown: Document, path: Path, value: Any, written: Any) -> None:
    """Take *value* out of what is shown at *path* or around it, where loading moved it; mask all there if it is not found."""
    found = False

    def replaced(item: Any) -> Any:
        nonlocal found
        if isinstance(item, dict):
            return {key: replaced(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [replaced(inner) for inner in item]
        found = found or item == value
        return written if item == value else item

    while path and shown.get(path) is None:
        path = path[:-1]
    if path:
        around = replaced(shown.get(path))
        shown.put(path, around if found else MASK)


def _open(source: Source, environ: Mapping[str, str]) -> Document:
    if source is None:
        return adopt({}, "built-in defaults", environ)
    if isinstance(source, Mapping):
        return adopt(source, "configuration", environ)
    try:
        return read(source, environ)
    except OSError as error:
        problem = Problem((), f"cannot be read: {error.strerror}")
        raise ConfigError([Located(problem, str(source))]) from error


def _set_from_environment(document: Document, environ: Mapping[str, str]) -> None:
    for prefix in reversed(PREFIXES):
        for variable in environ:
            if not variable.startswith(prefix):
                continue
            name = variable.removeprefix(prefix)
            origin = f"environment variable {variable}"
            if (path := VARIABLES.get(name)) is not None:
                document.put(path, environ[variable])
                document.origins[path] = origin
                document.outside[path] = None
            elif near := did_you_mean(variable, [prefix + known for known in VARIABLES], likeness=0.85):
                warning = Problem((), f"is not a setting and has no effect{near}", "warning")
                document.problems.append(Located(warning, origin))


def _checked(plugins: PluginSet, name: str, config: GatewayConfig) -> list[Problem]:
    try:
        return list(plugins.call(name, "gw_check", config=config) or ())
    except Exception as error:  # noqa: BLE001 (a plugin's fault is one problem among the others)
        return [Problem((), f"plugin {name!r}: gw_check raised {type(error).__name__}: {error}")]


def _validate(
    model: type[GatewayConfig], document: Document, plugins: PluginSet, refused: list[str]
) -> tuple[GatewayConfig | None, list[Problem]]:
    tried: set[Path] = set()
    while True:
        try:
            return model.model_validate_json(json.dumps(document.tree), strict=True), []
        except ValidationError as error:
            errors = [(_path(each, document), each) for each in error.errors(include_url=False)]
        if not any([_fill(document, path, each, tried) for path, each in errors]):  # noqa: C419 (each of them is tried)
            break
    known = model.model_json_schema()
    problems: dict[Path, Problem] = {}
    for path, each in errors:
        if each["type"] == "extra_forbidden":
            message = rules.unknown_key(path, known, plugins, refused)
        else:
            message = explain(each, secret=path in document.outside)
        if message is not None:
            problems.setdefault(path, Problem(path, message))
    return None, list(problems.values())


def _path(error: ErrorDetails, document: Document) -> Path:
    """Return where *error* is, without what pydantic adds to its location: the names of a union's members."""
    path: list[str | int] = []
    at: Any = document.tree
    for part in error["loc"]:
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and isinstance(part, int)):
            at = at[part]  # type: ignore[index]
            path.append(part)
    # A key that is not written down: it is required, or its default does not fit the others.
    unwritten = error["type"] == "missing" or (isinstance(at, dict) and error["input"] != at)
    return tuple([*path, error["loc"][-1]] if unwritten and len(path) < len(error["loc"]) else path)


def _fill(document: Document, path: Path, error: ErrorDetails, tried: set[Path]) -> bool:
    """Put in place of the value at *path* what it stands for, if that is what *error* is about."""
    value = document.get(path)
    kind = error["type"]
    if kind == "string_type" and isinstance(value, dict) and list(value) == ["file"] and isinstance(value["file"], str):
        if path in tried:
            return False
        tried.add(path)
        written = document.as_written(path)
        try:
            text = _text_of(document.folder / value["file"])
        except (OSError, ValueError) as failure:
            why = failure.strerror if isinstance(failure, OSError) else failure
            problem = Problem(path, f"cannot be read from the file {written['file']!r}: {why}")
            document.problems.append(document.locate(problem))
            return False
        document.put(path, text)
        document.outside.pop((*path, "file"), None)
        document.outside[path] = written
        return True
    if path not in document.outside or not isinstance(value, str):
        return False
    read_as: Any = None
    if kind == "int_type" and _INTEGER.fullmatch(value):
        read_as = int(value)
    elif kind == "float_type" and _NUMBER.fullmatch(value):
        read_as = float(value)
    elif kind == "bool_type":
        read_as = _BOOLEANS.get(value.lower())
    if read_as is None:
        return False
    document.put(path, read_as)
    return True


def _text_of(file: File) -> str:
    with file.open("rb") as stream:
        data = stream.read(MAX_VALUE_FILE_SIZE + 1)
    if len(data) > MAX_VALUE_FILE_SIZE:
        raise ValueError(f"it is larger than {MAX_VALUE_FILE_SIZE >> 20} MiB")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def _hide(problem: Problem, document: Document) -> Problem:
    """Take what came from outside out of the message: it may be a secret that was put in the wrong place."""
    value, written = document.get(problem.path), document.outside.get(problem.path)
    if not isinstance(value, str) or written is None:
        return problem
    message = problem.message.replace(repr(value), repr(written))
    if len(value) >= 4:  # a sentence may hold a shorter one by chance, and a secret is not short
        message = message.replace(value, str(written))
    return replace(problem, message=message)
