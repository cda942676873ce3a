from gw.testing.gateway import *
from gw.testing.memory import *
from gw.testing.cuts import cut_everywhere
import anyio, pytest
async def test_get():
    async with in_memory() as g:
        a = await g.get("/x")
        assert (a.status, a.body) == (200, b"ok")
        c = g.connect()
        c.write(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
        a = await read_answer(c); b = await read_answer(c)
        assert a.headers
        print(a, g.network.dialled)
        await g.network.advance(400)
        assert await c.read_until_end() == b""
        assert await g.leftovers() == []
async def test_cut():
    async def play(g):
        c = g.connect()
        c.write(b"POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello")
        await anyio.wait_all_tasks_blocked()
        c.write(b"world")
        assert (await read_answer(c)).status
    print(await cut_everywhere(play, Upstream))
    print(await cut_everywhere(play, Upstream, side="upstream"))
