"""An echo server of WebSockets for hypercorn: an ASGI application. ``/kick`` is closed by it, ``/no`` refused."""


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": f"HTTP/{scope['http_version']}".encode()})
        return
    await receive()
    if scope["path"].endswith("/no"):
        await send({"type": "websocket.close", "code": 1000})
        return
    chosen = "chat" if "chat" in scope["subprotocols"] else None
    await send(
        {
            "type": "websocket.accept",
            "subprotocol": chosen,
            "headers": [(b"x-spoken", scope["http_version"].encode())],
        }
    )
    if scope["path"].endswith("/kick"):
        await send({"type": "websocket.close", "code": 4001, "reason": "kicked"})
        return
    while (message := await receive())["type"] == "websocket.receive":
        said = {"type": "websocket.send"}
        if message.get("text") is not None:
            said["text"] = message["text"]
        else:
            said["bytes"] = message["bytes"]
        await send(said)
