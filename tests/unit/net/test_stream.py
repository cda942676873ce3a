"""What every stream does, whatever moves its bytes: in memory, on asyncio and uvloop, on trio."""

from __future__ import annotations

import gc
import socket
import weakref
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute

from gw.limits import READ_HIGH_WATER
from gw.net.deadlines import Deadlines
from gw.net.network import Network
from gw.net.stream import DeadlineExceeded, StreamLost
from gw.testing import PATIENCE
from gw.testing.memory import pair


class Ends:
    """Two ends of a connection: one that the gateway dialled, one that it accepted."""

    def __init__(self, dialled, accepted, deadlines):
        self.dialled, self.accepted, self.deadlines = dialled, accepted, deadlines


@asynccontextmanager
async def over_sockets():
    accepted = []
    came, over = anyio.Event(), anyio.Event()

    async def serve(stream):
        accepted.append(stream)
        came.set()
        await over.wait()

    async with anyio.create_task_group() as tasks:
        network = Network(tasks)
        tasks.start_soon(network.deadlines.run)
        listener = await network.listen(("127.0.0.1", 0), serve)
        ends = None
        try:
            with anyio.fail_after(PATIENCE):
                dialled = await network.dial(*listener.address)
                await came.wait()
                ends = Ends(dialled, accepted[0], network.deadlines)
                yield ends
        finally:
            listener.close()
            over.set()
            if ends is not None:
                ends.dialled.abort()
                ends.accepted.abort()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def over_memory():
    deadlines = Deadlines()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deadlines.run)
        with anyio.fail_after(PATIENCE):
            yield Ends(*pair(deadlines, ("192.0.2.1", 1), ("192.0.2.2", 2)), deadlines)
        tasks.cancel_scope.cancel()


@pytest.fixture(params=[over_memory, over_sockets], ids=["memory", "sockets"])
def ends(request):
    return request.param


async def at_hand(stream, size):
    """Wait until *size* bytes are there, without reading them."""
    while len(stream._data) < size:
        await anyio.lowlevel.checkpoint()


async def everything(stream):
    """Return all that comes, and what it ends with."""
    got = b""
    while True:
        try:
            got += await stream.receive()
        except (anyio.EndOfStream, StreamLost) as end:
            return got, type(end)


class TestReading:
    async def test_what_was_written_is_received_in_order(self, ends):
        async with ends() as both:
            both.dialled.write(b"one ")
            both.dialled.write_parts([b"two ", b"three "])
            await both.dialled.send(b"four")
            got = b""
            while len(got) < 18:
                got += await both.accepted.receive()
            assert got == b"one two three four"

    async def test_take_does_not_wait(self, ends):
        async with ends() as both:
            assert (both.accepted.take(), both.accepted.has_data) == (b"", False)
            both.dialled.write(b"here")
            await at_hand(both.accepted, 4)
            assert both.accepted.has_data
            assert (both.accepted.take(), both.accepted.take()) == (b"here", b"")

    async def test_receive_gives_no_more_than_asked_for(self, ends):
        async with ends() as both:
            both.dialled.write(b"abcdef")
            got = [await both.accepted.receive(2) for _ in range(2)]
            assert got == [b"ab", b"cd"]
            assert await both.accepted.receive() == b"ef"

    async def test_an_end_comes_after_the_data_before_it(self, ends):
        async with ends() as both:
            both.dialled.write(b"last")
            both.dialled.write_eof()
            assert await both.accepted.receive() == b"last"
            for _ in range(2):
                with pytest.raises(anyio.EndOfStream):
                    await both.accepted.receive()
            assert (both.accepted.at_eof, both.accepted.lost) == (True, False)

    async def test_after_its_end_one_side_can_still_be_answered(self, ends):
        async with ends() as both:
            both.dialled.write_eof()
            with pytest.raises(anyio.EndOfStream):
                await both.accepted.receive()
            await both.accepted.send(b"answer")
            assert await both.dialled.receive() == b"answer"

    async def test_a_receive_that_is_cancelled_loses_nothing(self, ends):
        async with ends() as both:
            got = []
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()

                async def read():
                    with scope:
                        got.append(await both.accepted.receive())

                tasks.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                both.dialled.write(b"data")
                both.accepted.on_eof = scope.cancel
                both.dialled.write_eof()
            if not got:
                got.append(await both.accepted.receive())
            assert got == [b"data"]

    async def test_reading_stops_when_nobody_takes_it_and_goes_on_when_somebody_does(self, ends):
        async with ends() as both:
            total = 20 << 20
            both.dialled.write(b"x" * total)
            assert both.dialled.paused
            while not both.accepted._read_paused:
                await anyio.lowlevel.checkpoint()
            assert both.dialled.unsent > 0
            got = 0
            while got < total:
                got += len(await both.accepted.receive())
            assert got == total

    async def test_what_is_held_is_bounded(self):
        async with over_sockets() as both:
            both.dialled.write(b"x" * (4 << 20))
            while not both.accepted._read_paused:
                await anyio.lowlevel.checkpoint()
            assert READ_HIGH_WATER <= len(both.accepted._data) <= READ_HIGH_WATER + (256 << 10)


class TestFailing:
    async def test_fail_ends_the_read_that_waits(self, ends):
        async with ends() as both, anyio.create_task_group() as tasks:

            async def read():
                with pytest.raises(ValueError, match="told to"):
                    await both.accepted.receive()

            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            both.accepted.fail(ValueError("told to"))

    async def test_fail_ends_one_read_and_not_the_connection(self, ends):
        async with ends() as both:
            both.accepted.fail(ValueError("told to"))
            with pytest.raises(ValueError, match="told to"):
                await both.accepted.receive()
            both.dialled.write(b"later")
            assert await both.accepted.receive() == b"later"

    async def test_a_read_that_passes_its_deadline_says_so(self, ends):
        async with ends() as both:
            both.accepted.reading.after(0.01)
            with pytest.raises(DeadlineExceeded):
                await both.accepted.receive()

    async def test_a_deadline_that_nobody_waits_for_is_told(self, ends):
        async with ends() as both:
            told = anyio.Event()
            both.accepted.on_idle_due = told.set
            both.accepted.reading.after(0.01)
            await told.wait()
            both.dialled.write(b"still there")
            assert await both.accepted.receive() == b"still there"

    async def test_a_read_that_was_cancelled_does_not_wait_any_more(self, ends):
        async with ends() as both:
            with anyio.move_on_after(0):
                await both.accepted.receive()
            told = anyio.Event()
            both.accepted.on_idle_due = told.set
            both.accepted.reading.after(0.01)
            await told.wait()


class TestWriting:
    async def test_drain_waits_until_the_peer_has_taken_enough(self, ends):
        async with ends() as both:
            both.dialled.set_write_marks(1000, 100)
            both.dialled.write(b"x" * (16 << 20))
            assert both.dialled.paused
            got = 0

            async def read():
                nonlocal got
                while got < 16 << 20:
                    got += len(await both.accepted.receive())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await both.dialled.drain()
                assert (both.dialled.paused, both.dialled.unsent <= 100) == (False, True)

    async def test_drain_gives_up_on_a_peer_that_takes_nothing(self, ends):
        async with ends() as both:
            both.dialled.send_timeout = 0.05
            both.dialled.write(b"x" * (16 << 20))
            with pytest.raises(DeadlineExceeded, match="the peer takes what it is sent too slowly"):
                await both.dialled.drain()

    async def test_drain_ends_when_the_connection_does(self, ends):
        async with ends() as both:
            both.dialled.write(b"x" * (16 << 20))
            async with anyio.create_task_group() as tasks:

                async def drain():
                    with pytest.raises(StreamLost):
                        await both.dialled.drain()

                tasks.start_soon(drain)
                await anyio.wait_all_tasks_blocked()
                both.dialled.abort()

    async def test_what_was_written_before_a_close_arrives(self, ends):
        async with ends() as both:
            both.dialled.write(b"last words")
            both.dialled.close()
            assert await everything(both.accepted) == (b"last words", anyio.EndOfStream)


class TestEnding:
    async def test_both_ends_are_told_once(self, ends):
        async with ends() as both:
            told = []
            gone = anyio.Event()
            both.accepted.on_eof = lambda: told.append("end")
            both.accepted.on_lost = lambda: (told.append("lost"), gone.set())
            both.dialled.write_eof()
            while not told:
                await anyio.lowlevel.checkpoint()
            both.accepted.abort()
            await gone.wait()
            await anyio.wait_all_tasks_blocked()
            assert told == ["end", "lost"]

    async def test_after_an_abort_reads_and_writes_say_that_it_is_lost(self, ends):
        async with ends() as both:
            both.dialled.abort()
            await anyio.wait_all_tasks_blocked()
            assert both.dialled.lost
            with pytest.raises(StreamLost):
                await both.dialled.receive()
            with pytest.raises(StreamLost):
                await both.dialled.send(b"x")
            both.dialled.write(b"ignored")
            both.dialled.write_eof()
            both.dialled.close()
            both.dialled.abort()

    async def test_a_reset_cannot_be_taken_for_an_end(self, ends):
        async with ends() as both:
            await both.dialled.send(b"half")
            assert await both.accepted.receive() == b"half"
            both.dialled.reset()
            with pytest.raises(StreamLost):
                await both.accepted.receive()

    async def test_an_early_answer_survives_the_write_that_fails(self):
        async with over_sockets() as both:
            both.dialled._pause_reading()
            await both.accepted.send(b"early answer")
            both.accepted.close()
            while not both.dialled.lost:
                both.dialled.write(b"more of the request" * 100)
                await anyio.lowlevel.checkpoint()
            assert (await everything(both.dialled))[0] == b"early answer"

    async def test_one_that_is_gone_is_freed_at_once(self):
        near, far = pair(Deadlines(), ("192.0.2.1", 1), ("192.0.2.2", 2))
        near.on_lost = near.abort
        near.reading.after(100)
        gone = weakref.ref(near)
        near.abort()
        gc.disable()
        try:
            far.other = far
            del near
            assert gone() is None
        finally:
            gc.enable()


class TestSockets:
    async def test_nagle_is_off_on_both_ends(self):
        async with over_sockets() as both:
            for stream in (both.dialled, both.accepted):
                sock = stream.extra(SocketAttribute.raw_socket)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    async def test_the_peer_is_known_by_its_address(self):
        async with over_sockets() as both:
            assert both.accepted.peer == both.dialled.extra(SocketAttribute.local_address)[:2]
            assert both.dialled.peer[0] == "127.0.0.1"

    async def test_a_port_that_is_taken_is_an_error(self):
        async with anyio.create_task_group() as tasks:
            network = Network(tasks)
            with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
                await network.listen(taken.getsockname()[:2], anyio.sleep)
            tasks.cancel_scope.cancel()

    async def test_nobody_answers_after_the_listener_is_closed(self):
        async with anyio.create_task_group() as tasks:
            network = Network(tasks)
            listener = await network.listen(("127.0.0.1", 0), anyio.sleep)
            listener.close()
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(OSError, match=r"."):
                await network.dial(*listener.address)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("open", "<MemoryStream open 0 to read, 0 to write>"),
        ("data", "<MemoryStream half-closed 2 to read, 0 to write>"),
    ],
)
async def test_a_stream_shows_its_state(state, shown):
    near, far = pair(Deadlines(), ("192.0.2.1", 1), ("192.0.2.2", 2))
    if state == "data":
        far.write(b"hi")
        far.write_eof()
    assert repr(near) == shown
    near.abort()
    assert repr(near).startswith("<MemoryStream lost")
