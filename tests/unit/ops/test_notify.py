"""What systemd hears, and the sockets that it hands over."""

import os
import socket
import subprocess
import sys

import pytest

from gw.ops.notify import Notifier, listen_sockets


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def test_it_is_told_what_happens(systemd, tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"})
    notifier.ready("serving")
    assert systemd.recv(1000).decode() == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving"
    notifier.reloading()
    assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    notifier.alive()
    assert systemd.recv(1000) == b"WATCHDOG=1"
    notifier.stopping()
    assert systemd.recv(1000) == b"STOPPING=1"
    assert notifier.watchdog == 2


def test_without_systemd_nothing_happens(tmp_path):
    assert Notifier({}).watchdog == 0
    Notifier({}).ready("serving")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serving")


def test_a_watchdog_that_is_for_another_process_is_not_ours():
    assert Notifier({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}).watchdog == 0
    assert Notifier({"WATCHDOG_USEC": "x"}).watchdog == 0


def test_sockets_that_are_handed_over_are_used():
    code = (
        "import os, socket, sys\n"
        "from gw.ops.notify import listen_sockets\n"
        "if int(sys.argv[1]) != 3: os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "found = list(listen_sockets())\n"
        "print(*found[0].getsockname(), len(found), 'LISTEN_FDS' in os.environ)\n"
        "found[0].close()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        done = subprocess.run(
            [sys.executable, "-c", code, str(number)], pass_fds=[number], capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == ["127.0.0.1", str(listener.getsockname()[1]), "1", "False"], done.stderr


def test_sockets_for_another_process_are_not_touched():
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x"}
    assert list(listen_sockets(environ)) == []
    assert environ == {}
