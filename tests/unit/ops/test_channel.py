"""Messages between supervisor and worker: whole, in order, with their descriptors; and the memory that workers share."""

import os
import socket
import threading

import anyio
import anyio.to_thread
import pytest

from gw.ops.channel import Channel, Ended, Memory, first, serve_memory
from gw.testing import PATIENCE


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def test_messages_arrive_whole_and_in_order(pair):
    one, other = map(Channel, pair)
    big = os.urandom(1 << 20)

    async def send():
        await one.send({"do": "a"})
        await one.send({"do": "b", "n": [1]}, big)
        await one.send({"do": "c"})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        got = [await other.receive() for _ in range(3)]
    assert [each.what for each in got] == [{"do": "a"}, {"do": "b", "n": [1]}, {"do": "c"}]
    assert got[1].data == big


async def test_descriptors_come_with_their_message(pair):
    one, other = map(Channel, pair)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        await one.send({"do": "a"})
        await one.send({"do": "b"}, b"x", (sock.fileno(), sock.fileno()))
        assert (await other.receive()).descriptors == ()
        found = (await other.receive()).descriptors
        with socket.socket(fileno=found[0]) as first_copy, socket.socket(fileno=found[1]):
            assert first_copy.getsockname() == sock.getsockname()


async def test_the_first_message_can_be_waited_for_without_a_loop_and_leaves_the_next(pair):
    one, other = pair
    channel = Channel(one)
    with socket.socket() as sock:
        await channel.send({"do": "start"}, b"data", (sock.fileno(),))
        await channel.send({"do": "stop"})
        message = first(other)
        assert (message.what, message.data, len(message.descriptors)) == ({"do": "start"}, b"data", 1)
        os.close(message.descriptors[0])
    assert (await Channel(other).receive()).what == {"do": "stop"}


async def test_an_end_that_is_gone_is_told(pair):
    one, other = map(Channel, pair)
    one.close()
    with pytest.raises(Ended):
        await other.receive()
    with pytest.raises(Ended):
        await other.send({})


async def test_who_sends_is_told_when_its_end_is_closed(pair):
    one = Channel(pair[0])
    told = anyio.Event()

    async def send():
        with pytest.raises(Ended):
            await one.send({}, bytes(1 << 24))
        told.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            assert not told.is_set()
            one.close()


async def test_an_end_of_ours_that_was_closed_is_told_as_well(pair):
    end = Channel(pair[0])
    end.close()
    with pytest.raises(Ended):
        await end.send({"do": "nothing"})
    with pytest.raises(Ended):
        await end.receive()


async def test_a_message_that_was_given_up_in_the_middle_ends_the_channel(pair):
    ours, theirs = map(Channel, pair)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.send, {"do": "prepare"}, bytes(1 << 24))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    with anyio.fail_after(PATIENCE):
        with pytest.raises(Ended):
            await ours.send({"do": "commit"})
        with pytest.raises(Ended):
            await theirs.receive()


async def test_workers_that_ask_for_one_name_share_one_memory(pair):
    ours, theirs = pair
    memories = {}
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve_memory, ours, memories, 2)
            ask = Memory(theirs)
            one, other = [await anyio.to_thread.run_sync(ask, "plugin/x") for _ in range(2)]
            os.ftruncate(one, 8)
            os.pwrite(one, b"12345678", 0)
            assert os.pread(other, 8, 0) == b"12345678"
            third = await anyio.to_thread.run_sync(ask, "plugin/y")
            with pytest.raises(OSError, match="there are 2 already"):
                await anyio.to_thread.run_sync(ask, "plugin/z")
            tasks.cancel_scope.cancel()
        for descriptor in (one, other, third):
            os.close(descriptor)
    finally:
        for descriptor in memories.values():
            os.close(descriptor)


def test_memory_cannot_be_had_from_a_supervisor_that_is_gone(pair):
    ours, theirs = pair
    asked = threading.Event()

    def leave():
        ours.recv(100)
        asked.set()
        ours.close()

    thread = threading.Thread(target=leave)
    thread.start()
    with pytest.raises(OSError, match="the supervisor is gone"):
        Memory(theirs)("x")
    thread.join()
    assert asked.is_set()
