"""An application of Starlette, for gateways whose configuration names it."""

from __future__ import annotations

import contextlib
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute


@contextlib.asynccontextmanager
async def lifespan(app):
    print(f"{os.getpid()} has started", flush=True)
    yield {"began": True}
    print(f"{os.getpid()} has ended", flush=True)


async def tell(request):
    return JSONResponse(
        {
            "worker": os.getpid(),
            "began": request.state.began,
            "method": request.method,
            "path": request.scope["path"],
            "root_path": request.scope["root_path"],
            "url": str(request.url_for("tell")),
            "body": len(await request.body()),
        }
    )


async def upper(request):
    async def chunks():
        async for chunk in request.stream():
            yield chunk.upper()

    return StreamingResponse(chunks())


async def talk(websocket):
    if websocket.query_params.get("key") == "wrong":
        await websocket.send_denial_response(JSONResponse({"why": "wrong key"}, 401))
        return
    await websocket.accept("chat" if "chat" in websocket.scope["subprotocols"] else None)
    while (text := await websocket.receive_text()) != "leave":
        await websocket.send_text(text[::-1])
    await websocket.close(4001, "as you wish")


app = Starlette(
    routes=[
        Route("/tell", tell, methods=["GET", "POST"]),
        Route("/upper", upper, methods=["POST"]),
        WebSocketRoute("/talk", talk),
    ],
    lifespan=lifespan,
)
