"""Fair shares: who lets the others go first."""

import os
import socket
import struct

import anyio
import pytest

from gw.net.network import Network, bind
from gw.net.share import Share
from gw.testing import PATIENCE


@pytest.fixture
def shares():
    memory = os.memfd_create("test")
    found = [Share(memory, number) for number in (1, 2, 3)]
    for number in range(1, 257):
        found[0].end(number)
    for share in found:
        share.begin()
    yield found
    for share in found:
        share.close()
    os.close(memory)


def test_whoever_has_more_than_another_lets_him_go_first(shares):
    one, two, three = shares
    assert [each.is_ours for each in shares] == [True] * 3
    one.add(1)
    assert [each.is_ours for each in shares] == [False, True, True]
    two.add(1)
    three.add(1)
    assert [each.is_ours for each in shares] == [True] * 3


def test_a_few_do_not_count_where_there_are_many(shares):
    for share in shares:
        share.add(100)
    shares[0].add(6)
    assert shares[0].is_ours
    shares[0].add(1)
    assert not shares[0].is_ours


def test_one_that_serves_no_more_is_not_waited_for(shares):
    one, two, three = shares
    one.add(50)
    assert not one.is_ours
    two.end()
    one.end(3)
    assert one.is_ours
    three.add(-1)
    assert one.is_ours


async def test_a_client_that_resets_before_it_is_accepted_ends_nothing(shares):
    for share in shares[1:]:
        share.end()
    served = anyio.Event()

    async def serve(stream):
        stream.abort()
        served.set()

    sock = bind("127.0.0.1", 0)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            network = Network(tasks)
            network.share = shares[0]
            with socket.socket() as rude:
                rude.connect(sock.getsockname())
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            listener = await network.listen(sock, serve)
            async with await anyio.connect_tcp(*listener.address):
                await served.wait()
            listener.close()
            await network.aclose()
            tasks.cancel_scope.cancel()
