"""What the tests of the plugin share: a clock that they move, real servers, and the stores behind one face."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import coredis
import pytest
import trustme
from anyio.from_thread import start_blocking_portal

sys.path.append(str(Path(__file__).parent))  # lets the tests import the module beside them

from gw.testing import PATIENCE
from gw_ratelimit import quick, redis, stores
from gw_ratelimit.redis import RedisStore
from gw_ratelimit.script import SCRIPT
from gw_ratelimit.stores import LocalStore, SharedStore
from gw_ratelimit.table import SharedTable
from gw_ratelimit.zones import Zone


@dataclass
class Clock:
    """Both clocks of a machine, in ms: since it was started, and since 1970."""

    steady: int = 1_000_000
    wall: int = 1_700_000_000_000

    def move(self, milliseconds: int) -> None:
        self.steady += max(0, milliseconds)
        self.wall += milliseconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    faked = SimpleNamespace(monotonic_ns=lambda: made.steady * 1_000_000, time_ns=lambda: made.wall * 1_000_000)
    monkeypatch.setattr(stores, "time", faked)
    monkeypatch.setattr(quick, "time", faked)
    return made


@pytest.fixture(scope="session")
def program():
    """Give the path of a program from outside, or skip; in CI, where it must have been installed, fail."""

    def find(name):
        path = shutil.which(name)
        if path is None:
            message = f"{name} is not installed: apt-get install {name}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
        return path

    return find


@dataclass
class Server:
    """A real server, which tests may kill, freeze and start again."""

    command: str
    folder: Path
    child: subprocess.Popen | None = None
    arguments: list[str] = field(default_factory=list)
    port: int = 0
    """Where it listens besides its socket."""

    @property
    def path(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        plain = ["--port", str(self.port), "--unixsocket", str(self.path), "--save", "", "--dir", str(self.folder)]
        self.child = subprocess.Popen([self.command, *plain, *self.arguments], stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + PATIENCE
        while not self._answers():
            assert time.monotonic() < give_up, "the server does not start"
            assert self.child.poll() is None, "the server ended"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(self.path))
            probe.sendall(b"PING\r\n")
            return bool(probe.recv(1))
        return False

    def signal(self, number: int) -> None:
        assert self.child is not None
        os.kill(self.child.pid, number)

    def kill(self) -> None:
        if self.child is None:
            return
        self.child.kill()
        self.child.wait()
        self.path.unlink(missing_ok=True)


@pytest.fixture
def coredis_may_drop_streams():
    """Collect what coredis leaves: it drops its memory streams without closing them, when a connection ends."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def server(program, tmp_path_factory, coredis_may_drop_streams):
    with contextlib.ExitStack() as stack:
        made = Server(program("redis-server"), tmp_path_factory.mktemp("r"))
        made.start()
        stack.callback(made.kill)
        yield made


@pytest.fixture
def encrypted_server(program, tmp_path_factory):
    """Give a server that speaks TLS only, and wants a certificate; its `files` say which, `name` and `host` are its own."""
    folder = tmp_path_factory.mktemp("r")
    authority, stranger = trustme.CA(), trustme.CA()
    files = {"ca_file": str(folder / "ca.pem"), "cert_file": str(folder / "us.pem"), "key_file": str(folder / "us.key")}
    authority.cert_pem.write_to_path(files["ca_file"])
    stranger.cert_pem.write_to_path(str(folder / "stranger.pem"))
    server, us = authority.issue_cert("localhost"), authority.issue_cert("gateway.test")
    for made, cert, key in ((server, "it.pem", "it.key"), (us, "us.pem", "us.key")):
        made.cert_chain_pems[0].write_to_path(str(folder / cert))
        made.private_key_pem.write_to_path(str(folder / key))
    port = free_port()
    tls = ["--tls-port", str(port), "--bind", "127.0.0.1", "--tls-ca-cert-file", files["ca_file"]]
    tls += ["--tls-cert-file", str(folder / "it.pem"), "--tls-key-file", str(folder / "it.key")]
    with contextlib.ExitStack() as stack:
        made_server = Server(program("redis-server"), folder, arguments=tls)
        made_server.start()
        stack.callback(made_server.kill)
        yield SimpleNamespace(port=port, files=files, stranger=str(folder / "stranger.pem"))


class Cluster:
    """Three nodes of a Redis cluster, with every slot taken and no replicas."""

    def __init__(self, program, folder: Path) -> None:
        self.ports = [free_port(below=50_000) for _ in range(3)]  # their bus is at 10,000 more
        self.nodes = []
        self._cli = program("redis-cli")
        for port in self.ports:
            own = folder / str(port)
            own.mkdir()
            cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--bind", "127.0.0.1"]
            self.nodes.append(Server(program("redis-server"), own, port=port, arguments=cluster))

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        where = [f"127.0.0.1:{port}" for port in self.ports]
        self._run("--cluster", "create", *where, "--cluster-yes")
        give_up = time.monotonic() + PATIENCE
        while any("cluster_state:ok" not in self.ask(port, "cluster", "info") for port in self.ports):
            assert time.monotonic() < give_up, "the nodes do not agree"

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([self._cli, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, port: int, *arguments: str) -> str:
        return self._run("-p", str(port), *arguments).strip()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def free_port(below: int = 65_536) -> int:
    """Return a port that was free a moment ago."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < below:
            return port


@pytest.fixture
def cluster(program, tmp_path_factory, coredis_may_drop_streams):
    made = Cluster(program, tmp_path_factory.mktemp("c"))
    with contextlib.ExitStack() as stack:
        stack.callback(made.kill)
        made.start()
        yield made


@pytest.fixture
def guarded_server(program, tmp_path_factory):
    """Give a server that asks for a password."""
    with contextlib.ExitStack() as stack:
        made = Server(program("redis-server"), tmp_path_factory.mktemp("r"), arguments=["--requirepass", "s3cret"])
        made.start()
        stack.callback(made.kill)
        yield made


# --- the stores, all alike ------------------------------------------------------------------------------------


class Subject:
    """A store under test, asked from outside of any loop."""

    def __init__(self, store, table=None, call=lambda decide, asks: decide(asks)):
        self.store, self._table, self._call = store, table, call
        self._zones = 0

    def zone(self, keys: int = 1000) -> Zone:
        """Make a zone that no one has used before."""
        self._zones += 1
        return Zone("gateway", f"z{self._zones}", f"z{self._zones}:key:kind", keys, self._table)

    def decide(self, *asks):
        return self._call(self.store.decide, asks)


CLOCKED = SCRIPT.replace("redis.call('TIME')", "{0, redis.call('GET', 'clock') * 1000}").replace(
    "string.format('%.0f', math.max(1, last))", "3600000"
)
"""The script with a clock that the test moves; what it would let expire stays, since that goes by the real one."""


@pytest.fixture(params=["local", "shared", "redis"])
def subject(request, clock, tmp_path, monkeypatch):
    if request.param == "local":
        yield Subject(LocalStore())
    elif request.param == "shared":
        table = SharedTable(str(tmp_path / "table"), None, 10_000)
        yield Subject(SharedStore(), table)
        table.open().close()
    else:
        assert CLOCKED.count("'clock'") == CLOCKED.count("3600000") == 1
        monkeypatch.setattr(redis, "SCRIPT", CLOCKED)
        server = request.getfixturevalue("server")
        with start_blocking_portal("asyncio") as portal:
            store = RedisStore(server.url, timeout=PATIENCE, prefix="gw:", log=logging.getLogger("test"))
            running = portal.start_task_soon(store.run)
            keeper = portal.wrap_async_context_manager(
                coredis.Redis.from_url(server.url, decode_responses=True, verify_version=False)
            )
            with keeper as plain:

                async def ask(decide, asks):
                    await plain.set("clock", str(clock.steady))
                    return await decide(asks)

                yield Subject(store, call=lambda decide, asks: portal.call(ask, decide, asks))
            running.cancel()
