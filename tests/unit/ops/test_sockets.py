"""Which listening socket a gateway begins with, and which it needs after a reload."""

import json
import os
import socket

import anyio
import pytest

from gw.config.load import load
from gw.ops.failures import NotReloaded
from gw.ops.sockets import INHERITED, Sockets
from gw.testing import PATIENCE


def loaded(port, host="127.0.0.1"):
    return load({"plugins": [], "bind_host": host, "bind_port": port}, environ={})


@pytest.fixture
def inherited():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def from_before(*listeners, **more):
    return Sockets({INHERITED: json.dumps({"sockets": [os.dup(each.fileno()) for each in listeners], **more})})


def test_without_anything_it_binds_one():
    sockets = Sockets({})
    found = sockets.listen(loaded(0))
    assert found["main"].getsockname()[1] > 0
    assert not sockets.is_replacing
    sockets.close()


def test_a_socket_that_was_handed_over_is_the_one_to_listen_on(inherited):
    port = inherited.getsockname()[1]
    for configured in (port, 0, 18_181):  # its own, any, or another one: there is only one
        sockets = from_before(inherited)
        assert sockets.listen(loaded(configured))["main"].getsockname()[1] == port
        sockets.close()


def test_of_several_the_one_at_the_address_is_taken_and_the_rest_closed(inherited):
    with socket.create_server(("127.0.0.1", 0)) as other:
        sockets = from_before(other, inherited)
        port = inherited.getsockname()[1]
        assert sockets.listen(loaded(port))["main"].getsockname()[1] == port
        rest = sockets._inherited[0]
        sockets.taken_over()
        assert rest.fileno() == -1
        sockets.close()


def test_a_reload_binds_only_what_is_new(inherited):
    sockets = Sockets({})
    old = loaded(0)
    sockets.listen(old)
    assert sockets.change(old, loaded(0)) == {}
    new = loaded(0, "127.0.0.2")
    opened = sockets.change(old, new)
    assert opened["main"].getsockname()[0] == "127.0.0.2"
    with pytest.raises(OSError, match="in use"):
        sockets.change(old, loaded(inherited.getsockname()[1]))
    opened["main"].close()
    sockets.close()


def test_the_one_that_is_replaced_is_told_when_its_successor_serves():
    ours, theirs = os.pipe()
    sockets = Sockets({INHERITED: json.dumps({"ready": theirs})})
    assert sockets.is_replacing
    sockets.taken_over()
    assert os.read(ours, 10) == b"\x01"
    assert os.read(ours, 10) == b""
    os.close(ours)


@pytest.mark.parametrize(
    ("program", "is_well"),
    [("import json, os; os.write(json.loads(os.environ['GW_INHERITED'])['ready'], b'\\1')", True), ("", False)],
)
async def test_a_successor_is_waited_for(monkeypatch, program, is_well):
    monkeypatch.setattr("gw.ops.sockets.sys.orig_argv", ["python", "-c", program])
    sockets = Sockets({})
    listening = sockets.listen(loaded(0)).values()
    with anyio.fail_after(PATIENCE):
        if is_well:
            await sockets.hand_over(listening, None)
        else:
            with pytest.raises(NotReloaded, match="the new program ended, or did not serve in time"):
                await sockets.hand_over(listening, None)
    sockets.close()
