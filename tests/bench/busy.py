"""An ASGI application that costs a known CPU time a request: `BUSY_US` microseconds of the gateway's process."""

from __future__ import annotations

import os
import time
from typing import Any

BUSY = int(os.environ.get("BUSY_US", "1000")) * 1000


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("it has no lifespan, which is how an application says so")
    until = time.thread_time_ns() + BUSY
    while time.thread_time_ns() < until:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
