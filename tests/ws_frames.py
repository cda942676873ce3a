"""WebSocket frames as bytes, made here so that no test takes the code's own word for them."""

from __future__ import annotations

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"\x11\x82\x03\xf4"


def frame(opcode, payload=b"", *, fin=True, rsv=0, masked=False, length=None, key=KEY):
    """Return a frame. *length* is a prefix of 1, 3 or 9 bytes that says something else than the shortest form does."""
    size = len(payload)
    if length is None:
        length = (
            bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
        )
    out = bytes((fin << 7 | rsv << 4 | opcode, length[0] | masked << 7)) + length[1:]
    if masked:
        return out + key + bytes(byte ^ key[at & 3] for at, byte in enumerate(payload))
    return out + payload


def close(code=None, reason=b"", **how):
    return frame(CLOSE, b"" if code is None else code.to_bytes(2) + reason, **how)


def parsed(data, *, masked=False):
    """Return the frames in *data*, as (opcode, fin, payload); all of it must be frames."""
    found = []
    while data:
        first, second = data[0], data[1]
        assert second >> 7 == masked, f"{'un' if masked else ''}masked: {data[:20]!r}"
        size, at = second & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            size = int.from_bytes(data[2:at])
        key, at = (data[at : at + 4], at + 4) if masked else (bytes(4), at)
        assert len(data) >= at + size, f"cut: {data[:20]!r}"
        payload = bytes(byte ^ key[i & 3] for i, byte in enumerate(data[at : at + size]))
        found.append((first & 0x7F, first >> 7, payload))
        data = data[at + size :]
    return found
