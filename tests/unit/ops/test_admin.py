"""The admin listener: its token, and that it goes along with the configuration. What it answers, tests/integration asks."""

from __future__ import annotations

from types import SimpleNamespace

import anyio

from gw.config.load import load
from gw.ops.admin import Admin
from gw.testing import PATIENCE

TOKEN = "sixteen characters and more"


def loaded(**admin):
    return load({"plugins": [], **({"admin": admin} if admin else {})}, environ={})


class Orders:
    def __init__(self):
        self.crew = SimpleNamespace(loaded=loaded())
        self.history = []
        self.drained = 0
        self.asked, self.may_go_on, self.done = anyio.Event(), anyio.Event(), anyio.Event()

    def status(self):
        return {"state": "serving"}

    async def reload(self, by, *, confirm_within=0):
        raise AssertionError("not with that number")

    async def set_level(self, level):
        self.asked.set()
        await self.may_go_on.wait()
        self.done.set()

    def drain(self):
        self.drained += 1


async def ask(address, method, path, token=TOKEN):
    async with await anyio.connect_tcp(*address) as client:
        head = f"{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        await client.send(head.encode())
        return int((await client.receive())[9:12])


async def test_it_comes_and_goes_with_its_section():
    orders = Orders()
    admin = Admin(orders)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admin.run)
            await anyio.wait_all_tasks_blocked()
            assert admin._gateway is None
            orders.crew.loaded = loaded(bind="127.0.0.1:0", token=TOKEN)
            admin.changed()
            while admin._gateway is None or not admin._gateway.addresses:
                await anyio.lowlevel.checkpoint()
            address = admin._gateway.addresses["main"]
            assert await ask(address, "GET", "/status") == 200
            assert await ask(address, "GET", "/status", "another one of that length") == 401
            assert await ask(address, "POST", "/reload?confirm_within=soon") == 409
            assert await ask(address, "POST", "/drain") == 200
            assert await ask(address, "GET", "/drain") == 405
            assert await ask(address, "GET", "/nothing") == 404
            assert orders.drained == 1
            orders.crew.loaded = loaded()
            admin.changed()
            while admin._gateway is not None:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()


async def test_what_was_ordered_is_done_although_whoever_asked_has_left():
    orders = Orders()
    orders.crew.loaded = loaded(bind="127.0.0.1:0", token=TOKEN)
    admin = Admin(orders)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admin.run)
            while admin._gateway is None or not admin._gateway.addresses:
                await anyio.lowlevel.checkpoint()
            gateway = admin._gateway
            async with await anyio.connect_tcp(*gateway.addresses["main"]) as client:
                head = f"POST /log-level?level=debug HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
                await client.send(head.encode())
                await orders.asked.wait()
            gateway.stop(at_once=True)
            await anyio.wait_all_tasks_blocked()
            orders.may_go_on.set()
            await orders.done.wait()
            tasks.cancel_scope.cancel()
