"""Health checks as grpc.health.v1 says, answered by gRPC's own server and servicer: in cleartext and over TLS."""

import contextlib
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from started import start_gateway

from gw.testing import PATIENCE

STATES = health_pb2.HealthCheckResponse


class Server:
    def __init__(self, credentials=None):
        self.health = health.HealthServicer()
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        address = "127.0.0.1:0"
        self.port = (
            self.server.add_insecure_port(address)
            if credentials is None
            else self.server.add_secure_port(address, credentials)
        )
        self.server.start()

    def close(self):
        self.server.stop(0).wait(PATIENCE)


@pytest.mark.parametrize("secure", [False, True], ids=["cleartext", "tls"])
def test_an_endpoint_is_as_well_as_its_servicer_says(variant, secure, tmp_path):
    credentials, settings = None, {"http2": {"enabled": True, "prefer": "h2c"}}
    if secure:
        authority = Authority(tmp_path)
        files = authority.issue("up.test")
        key, chain = (Path(files[name]).read_bytes() for name in ("key_file", "cert_file"))
        credentials = grpc.ssl_server_credentials([(key, chain)])
        tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test"}
        settings = {"http2": {"enabled": True, "prefer": "auto"}, "tls": tls}
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(contextlib.closing(Server(credentials))) for _ in range(2))
        one.health.set("gw.Test", STATES.SERVING)
        other.health.set("gw.Test", STATES.NOT_SERVING)
        active = {"type": "grpc", "service": "gw.Test", "interval_ms": 100, "unhealthy_threshold": 1}
        settings |= {
            "name": "up",
            "endpoints": [{"host": "127.0.0.1", "port": each.port} for each in (one, other)],
            "health": {"active": {**active, "healthy_threshold": 1}},
            "proxy": {"route_prefix": "/"},
        }
        gateway = stack.enter_context(
            contextlib.closing(start_gateway(variant | {"bind_port": 0, "upstreams": [settings]}, folder=tmp_path))
        )
        gateway.wait_for(f"endpoint 127.0.0.1:{other.port} is unhealthy: it is NOT_SERVING")
        other.health.set("gw.Test", STATES.SERVING)
        gateway.wait_for(f"endpoint 127.0.0.1:{other.port} is healthy again")
        one.health.set("gw.Test", STATES.NOT_SERVING)
        gateway.wait_for(f"endpoint 127.0.0.1:{one.port} is unhealthy: it is NOT_SERVING")


def test_a_service_that_nobody_has_is_told(variant, tmp_path):
    with contextlib.closing(Server()) as server:
        settings = {
            "name": "up",
            "host": "127.0.0.1",
            "port": server.port,
            "http2": {"enabled": True, "prefer": "h2c"},
            "health": {"active": {"type": "grpc", "service": "nobody.Has", "interval_ms": 100}},
            "proxy": {"route_prefix": "/"},
        }
        configuration = variant | {"bind_port": 0, "upstreams": [settings]}
        with contextlib.closing(start_gateway(configuration, folder=tmp_path)) as gateway:
            gateway.wait_for(f"endpoint 127.0.0.1:{server.port} is unhealthy: it answered grpc-status 5")
