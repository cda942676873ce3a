"""The control socket: questions and answers, and who may not ask."""

import json
import socket
from contextlib import asynccontextmanager, closing

import anyio
import anyio.to_thread
import pytest

from gw.limits import MAX_CONTROL_QUESTION
from gw.ops import control
from gw.ops.control import Control, ControlError, ask, beside
from gw.testing import PATIENCE


@asynccontextmanager
async def serving(path, answer):
    with closing(Control(path, answer)) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            yield server
            tasks.cancel_scope.cancel()


async def echo(question):
    if question.get("do") == "refuse":
        raise ControlError("no")
    if question.get("do") == "fail":
        raise KeyError("x")
    return {"said": question}


async def asked(path, question):
    return await anyio.to_thread.run_sync(ask, path, question)


async def test_a_question_is_answered(tmp_path):
    async with serving(tmp_path / "s", echo):
        assert await asked(tmp_path / "s", {"do": "x", "n": 1}) == {"said": {"do": "x", "n": 1}}


async def test_the_descriptor_of_one_that_was_closed_is_free_for_others(tmp_path):
    async with serving(tmp_path / "s", echo) as server:
        await anyio.wait_all_tasks_blocked()  # it waits for a question
        number = server._socket.fileno()
        server.close()
        await anyio.wait_all_tasks_blocked()
        one, other = socket.socketpair()
        with one, other, anyio.fail_after(PATIENCE):
            assert number in {one.fileno(), other.fileno()}
            mine, theirs = (one, other) if one.fileno() == number else (other, one)
            theirs.send(b"x")
            await anyio.wait_readable(mine)
            assert mine.recv(1) == b"x"


async def test_a_refusal_is_an_error_at_the_other_end(tmp_path):
    async with serving(tmp_path / "s", echo):
        with pytest.raises(ControlError, match=r"^no$"):
            await asked(tmp_path / "s", {"do": "refuse"})
        with pytest.raises(ControlError, match="that went wrong; the log says why"):
            await asked(tmp_path / "s", {"do": "fail"})


@pytest.mark.parametrize(
    ("sent", "says"),
    [(b"[]\n", "a question is a JSON object"), (b"{\n", "cannot be read"), (b"\xff\n", "cannot be read")],
)
async def test_what_is_no_question_is_told_so(tmp_path, sent, says):
    def talk():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(sent)
            return client.makefile("rb").readline()

    async with serving(tmp_path / "s", echo):
        assert says in json.loads(await anyio.to_thread.run_sync(talk))["error"]


async def test_a_question_that_does_not_end_is_cut_off(tmp_path):
    def talk():
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(tmp_path / "s"))
            try:
                client.sendall(b"x" * (2 * MAX_CONTROL_QUESTION))
                return client.recv(10)
            except (BrokenPipeError, ConnectionResetError):
                return b""

    async with serving(tmp_path / "s", echo):
        assert await anyio.to_thread.run_sync(talk) == b""


async def test_others_are_not_answered(tmp_path, monkeypatch):
    async with serving(tmp_path / "s", echo):
        monkeypatch.setattr(control.os, "geteuid", lambda: 12345)
        monkeypatch.setattr(
            control, "_PEER", type("P", (), {"size": 12, "unpack": staticmethod(lambda b: (1, 54321, 0))})
        )
        with pytest.raises(ControlError, match="belongs to somebody else"):
            await asked(tmp_path / "s", {})


async def test_it_is_for_its_user_only_and_gone_at_the_end(tmp_path):
    async with serving(tmp_path / "s", echo):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "s").exists()


async def test_a_socket_that_was_left_over_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "s"))
    async with serving(tmp_path / "s", echo):
        assert await asked(tmp_path / "s", {}) == {"said": {}}


async def test_a_long_path_is_no_hindrance(tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with serving(beside(folder / "gw.pid"), echo):
        assert await asked(beside(folder / "gw.pid"), {}) == {"said": {}}


def test_nobody_there_is_an_error_that_says_where(tmp_path):
    with pytest.raises(ControlError, match=rf"cannot be asked at {tmp_path}/s: No such file or directory"):
        ask(tmp_path / "s", {})
