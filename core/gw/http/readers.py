"""The machine that both HTTP/1.1 engines share: cuts a stream of bytes into heads, bodies and trailers.

It gathers a head, bounded, until its empty line and only then shows it to the
engine, which is one function: head in, field lines out. What the head means is
`gw.http.framing`'s business. Bodies are cut here too, so that where a message
ends is decided in one place, whichever engine reads the heads. Nothing here
knows which engine that is.

Verdicts do not depend on how the network cut the bytes: see `Reader._gather`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final, Generic, TypeVar, cast

from gw.filters import Headers, Request, Response
from gw.http.framing import (
    Fields,
    Refusal,
    SplitHead,
    frame_again,
    frame_request,
    frame_response,
    frame_trailers,
)
from gw.http.h1 import END, End, Malformed, ReaderLimits
from gw.limits import (
    HEAD_SLACK,
    MAX_CHUNK_OVERHEAD,
    MAX_EMPTY_LINES,
    MAX_JOINED_WRITE,
    MAX_SAME_BLOCK,
    MAX_UNLIMITED_SECTION,
)

__all__ = ["RequestReader", "ResponseReader", "split_section"]

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_request_line: Final = re.compile(rb"(" + _TOKEN + rb") ([!\"$-~]++) HTTP/([0-9]\.[0-9])\r\n").match
_status_line: Final = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9][0-9])(?: ([\t -~\x80-\xff]*+))?\r\n").match
_field_line: Final = re.compile(rb"(" + _TOKEN + rb"):([\t -~\x80-\xff]*+)\r\n").findall
_section: Final = re.compile(rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*+\r\n)*+\r\n").fullmatch

# At most 15 digits: what fits 63 bits. Extensions as RFC 9112 section 7.1.1 writes them, but without "bad" blanks.
_chunk_line: Final = re.compile(
    rb"([0-9A-Fa-f]{1,15}+)"
    rb"(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"(?:[\t !#-\[\]-~]|\\[\t -~])*+"))?+)*+\r\n'
).match
_bare_line_end: Final = re.compile(rb"(?<!\r)\n|\r[^\n]").search

_VERSIONS: Final = {b"1.1": "1.1", b"1.0": "1.0"}
_CR: Final = 0x0D
_CHUNK_LINE: Final = 16
"""As long as this a chunk-size line may be before it counts as overhead."""
_BARE: Final = "A line does not end with CR LF"
_TOO_LARGE: Final = "Request Header Fields Too Large"
_CHUNK_OVERHEAD: Final = "Too many bytes in chunk sizes and extensions"

Event = TypeVar("Event")


def split_section(section: bytes) -> Fields:
    """Split field lines and the empty line after them: the engines' grammar, for trailers and for those who need it."""
    if _section(section) is None:
        raise Refusal("Malformed header line")
    return [(name.lower(), value.strip(b" \t")) for name, value in _field_line(section)]


def _bound(limit: int) -> int:
    """How long a section may be as sent, for a limit on what it holds."""
    return limit + HEAD_SLACK if limit else MAX_UNLIMITED_SECTION


class Reader(Generic[Event]):
    """What the two directions have in common.

    `feed` hands the bytes to the current step until none are left. A step is a
    function that takes from *data* at *at*, returns where it stopped, and may
    have chosen the next step. It is kept as a plain function, not as a bound
    method: a reader must be freed when its connection goes, without the help
    of the garbage collector.
    """

    __slots__ = (
        "_buffer",
        "_head_bound",
        "_left",
        "_limits",
        "_overhead",
        "_pieces",
        "_split",
        "_step",
        "_trailer_bound",
        "events",
    )
    _first: ClassVar[frozenset[int]]
    """Bytes that a start line may begin with: a peer that speaks something else is refused at once."""
    _shares: ClassVar[bool] = False
    """Whether a part of a large body that was read together with the head is a view of what was read, not a copy."""

    def __init__(self, split: SplitHead, limits: ReaderLimits, step: Callable[..., int]) -> None:
        self.events: deque[Event | bytes | End | Malformed] = deque()
        self._split = split
        self._limits = limits
        self._head_bound = _bound(limits.head_size)
        self._trailer_bound = _bound(limits.trailer_size)
        self._step = step
        self._buffer = bytearray()
        """The beginning of a section that is not complete yet."""
        self._pieces: list[bytes] = []
        """Chunked data of this feed: handed on as one."""
        self._left = 0
        """Body bytes still to come, of the message or of the chunk."""
        self._overhead = 0

    def feed(self, data: bytes) -> None:
        at, size = 0, len(data)
        try:
            while at < size:
                at = self._step(self, data, at)
        except Refusal as refusal:
            self._give_up(self._malformed(refusal))
        if self._pieces:
            self._flush()

    def _malformed(self, refusal: Refusal) -> Malformed:
        return Malformed(refusal.message, refusal.status)

    def _give_up(self, malformed: Malformed) -> None:
        if self._pieces:
            self._flush()
        self.events.append(malformed)
        self._step = Reader._ignore
        self._buffer = bytearray()

    def _ignore(self, data: bytes, at: int) -> int:
        return len(data)

    def _gather(
        self, data: bytes, at: int, end_mark: bytes, bound: int, too_long: str = _TOO_LARGE, status: int = 431
    ) -> tuple[bytes | None, int]:
        """Add to the buffer until *end_mark*; return the section with its mark, or `None` when more is needed.

        The verdict must be the same wherever the network cut. So bytes are judged in the order of the stream: what
        stands within *bound* and is wrong (a bare CR or LF: no later byte can heal it) comes before "too long".
        """
        buffer = self._buffer
        before = len(buffer)
        buffer += data[at : at + bound - before]
        found = buffer.find(end_mark, max(0, before - len(end_mark) + 1))
        end = len(buffer) if found < 0 else found + len(end_mark)
        if _bare_line_end(buffer, max(0, before - 1), end):
            raise Refusal(_BARE)
        if found < 0:
            if end >= bound:
                raise Refusal(too_long, status)
            return None, at + end - before
        section = bytes(buffer[:end])
        buffer.clear()
        return section, at + end - before

    # --- heads ---------------------------------------------------------------

    def _read_head(self, data: bytes, at: int) -> int:
        if not self._buffer:
            end = data.find(b"\r\n\r\n", at) + 4
            if at + 4 <= end <= at + self._head_bound and data[at] != _CR:
                self._begin(data[at:end])
                return end
        return self._read_cut_head(data, at)

    def _read_cut_head(self, data: bytes, at: int) -> int:
        """Read a head that is not there as a whole, or begins with a CR, or is too long."""
        if not self._buffer and data[at] not in self._first:
            raise Refusal("Malformed start line")
        head, at = self._gather(data, at, b"\r\n\r\n", self._head_bound)
        if head is not None:
            self._begin(head)
        return at

    def _begin(self, head: bytes) -> None:
        raise NotImplementedError

    # --- bodies --------------------------------------------------------------

    def _read_length(self, data: bytes, at: int) -> int:
        if at and self._left > MAX_JOINED_WRITE and self._shares:
            piece = cast(bytes, memoryview(data)[at : at + self._left])
        else:
            piece = data[at : at + self._left]
        self.events.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._end(END)
        return at + len(piece)

    def _read_until_close(self, data: bytes, at: int) -> int:
        self.events.append(data[at:])
        return len(data)

    def _begin_chunks(self) -> None:
        self._overhead = 0
        self._step = Reader._read_chunk_line

    def _read_chunk_line(self, data: bytes, at: int) -> int:
        """Read a chunk-size line, and every whole chunk from there on."""
        if not self._buffer:
            while line := _chunk_line(data, at):
                at = line.end()
                left = self._begin_chunk(line)
                end = at + left
                if not left or data[end : end + 2] != b"\r\n":
                    return at
                self._pieces.append(data[at:end])
                self._step = Reader._read_chunk_line
                at = end + 2
            if at == len(data):
                return at
        # The line is cut, or wrong.
        bound = _CHUNK_LINE + MAX_CHUNK_OVERHEAD - self._overhead
        found, at = self._gather(data, at, b"\r\n", bound, _CHUNK_OVERHEAD, 400)
        if found is not None:
            whole = _chunk_line(found)
            if whole is None:
                raise Refusal("Malformed chunk size or extension")
            self._begin_chunk(whole)
        return at

    def _begin_chunk(self, line: re.Match[bytes]) -> int:
        """Choose what follows a chunk-size line; return the chunk's size."""
        over = line.end() - line.start() - _CHUNK_LINE
        if over > 0:
            self._overhead += over
            if self._overhead > MAX_CHUNK_OVERHEAD:
                raise Refusal(_CHUNK_OVERHEAD)
        self._left = int(line[1], 16)
        if self._left:
            self._step = Reader._read_chunk_data
        else:
            # This line's CR LF is put back as the first of the trailer section, which thereby always ends in CR LF CR LF.
            self._buffer += b"\r\n"
            self._step = Reader._read_trailers
        return self._left

    def _read_chunk_data(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._left]
        self._left -= len(piece)
        self._pieces.append(piece)
        if not self._left:
            self._step = Reader._read_chunk_end
        return at + len(piece)

    def _read_chunk_end(self, data: bytes, at: int) -> int:
        found, at = self._gather(data, at, b"\r\n", 2, "A chunk does not end where its size says", 400)
        if found is not None:
            self._step = Reader._read_chunk_line
        return at

    def _read_trailers(self, data: bytes, at: int) -> int:
        if len(self._buffer) == 2 and data.startswith(b"\r\n", at):  # nearly always
            self._buffer.clear()
            self._end(END)
            return at + 2
        found, at = self._gather(data, at, b"\r\n\r\n", 2 + self._trailer_bound)
        if found is not None:
            section = found[2:]
            self._end(END if section == b"\r\n" else End(frame_trailers(split_section(section), self._limits)))
        return at

    def _flush(self) -> None:
        self.events.append(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        self._pieces.clear()

    def _end(self, end: End) -> None:
        raise NotImplementedError


class RequestReader(Reader[Request]):
    """Reads requests, pipelined ones too; implements `gw.http.h1.RequestReader`.

    After a request that is the connection's last (``Connection: close``, or
    CONNECT, which the gateway refuses) whatever follows is no request: it is dropped.
    """

    __slots__ = ("_block", "_empty_lines", "_fields", "_last", "_like", "held", "in_head")
    _first = frozenset(b"!#$%&'*+.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-")

    def __init__(self, split: SplitHead, limits: ReaderLimits) -> None:
        super().__init__(split, limits, Reader._read_head)
        self._empty_lines = 0
        self._last = False
        self.held = b""
        self.in_head = False
        # A client that says the same again on one connection, but for the path, is not parsed a third time.
        self._block = b""
        self._fields: Fields = []
        self._like: Request | None = None

    def feed_eof(self) -> None:
        between = self._step is RequestReader._hold or (self._step is Reader._read_head and not self._buffer)
        if not between and self._step is not Reader._ignore:
            self._give_up(Malformed("The connection ended in the middle of a request", truncated=True))
        self._step = Reader._ignore

    def _read_cut_head(self, data: bytes, at: int) -> int:
        if self._buffer == b"\r" or (not self._buffer and data[at] == _CR):
            # An empty line before a request is ignored (RFC 9112 section 2.2).
            found, at = self._gather(data, at, b"\r\n", 2, _BARE, 400)
            if found is not None:
                self._empty_lines += 1
                if self._empty_lines > MAX_EMPTY_LINES:
                    raise Refusal("Too many empty lines before a request")
            return at
        self.in_head = False
        at = super()._read_cut_head(data, at)
        self.in_head = len(self._buffer) > 0
        return at

    def _begin(self, head: bytes) -> None:
        line = _request_line(head)
        if line is None:
            raise Refusal("Malformed request line")
        method, target, digits = line.groups()
        version = _VERSIONS.get(digits)
        if version is None:
            if _bare_line_end(head):
                raise Refusal(_BARE)
            raise Refusal("HTTP Version Not Supported", 505)
        block = head[line.end() :]
        like = self._like
        if like is not None and block == self._block and like.version == version:
            request = frame_again(method, target, like, self._fields.copy(), self._limits, len(head))
        else:
            fields = self._split(head)
            request = frame_request(method, target, version, fields, self._limits, len(head))
            if block != self._block:
                self._block, self._like = block if len(block) <= MAX_SAME_BLOCK else b"", None
            elif block:
                # A request of its own: filters, and the core, change the one that they are handed.
                self._fields = fields.copy()
                self._like = frame_again(method, target, request, self._fields, self._limits, len(head))
        self._last = not request.keep_alive or request.method == "CONNECT"
        self._empty_lines = 0
        self.events.append(request)
        if not request.has_body:
            self.events.append(END)
            if request.upgrade == "websocket":
                self._step = RequestReader._hold
            elif self._last:
                self._step = Reader._ignore
        elif request.content_length is None:
            self._begin_chunks()
        else:
            self._left = request.content_length
            self._step = Reader._read_length

    def _end(self, end: End) -> None:
        if self._pieces:
            self._flush()
        self.events.append(end)
        self._step = Reader._ignore if self._last else Reader._read_head

    def _hold(self, data: bytes, at: int) -> int:
        self.held += data[at:]
        return len(data)

    def go_on(self) -> None:
        """Read what was held as HTTP: the connection did not become a WebSocket."""
        if self._step is RequestReader._hold:
            self._step = Reader._ignore if self._last else Reader._read_head
            data, self.held = self.held, b""
            self.feed(data)


class ResponseReader(Reader[Response]):
    """Reads the response to one request at a time; implements `gw.http.h1.ResponseReader`.

    Whatever is wrong with a response, the client is told 502.
    """

    __slots__ = ("_asked", "_fields", "_head", "_like", "_like_is_chunked", "_method", "_upgrade", "held", "spare")
    _first = frozenset(b"H")
    _shares = True

    def __init__(self, split: SplitHead, limits: ReaderLimits) -> None:
        super().__init__(split, limits, ResponseReader._read_spare)
        self._method = ""
        self._upgrade: str | None = None
        self.held = b""
        self.spare = False
        # A server that answers the same on one connection, byte for byte, is not parsed a third time.
        self._head = b""
        self._asked = ""
        """The method that was answered with `_head`, on which depends what it means."""
        self._fields: Fields = []
        self._like: Response | None = None
        self._like_is_chunked = False

    def expect(self, method: str, upgrade: str | None = None) -> None:
        """Say which method the next response answers, and which protocol was asked for. Resets *spare*."""
        self._method, self._upgrade = method, upgrade
        self.spare = False
        if self._step is ResponseReader._read_spare:
            self._step = Reader._read_head

    def feed_eof(self) -> None:
        if self._step is Reader._read_until_close:
            self._end(END)
        elif self._step not in (ResponseReader._read_spare, Reader._ignore):
            self._give_up(Malformed("The upstream closed the connection before its response was complete", 502, True))
        self._step = Reader._ignore

    def _malformed(self, refusal: Refusal) -> Malformed:
        return Malformed("Response Header Fields Too Large" if refusal.status == 431 else refusal.message, 502)

    def _begin(self, head: bytes) -> None:
        like = self._like
        if like is not None and head == self._head and self._method == self._asked:
            response, chunked = like._again(Headers(self._fields.copy())), self._like_is_chunked
        else:
            response, chunked = self._frame(head)
        self.events.append(response)
        if response.status == 101:
            self._step = ResponseReader._hold
            return
        if response.status < 200:
            return  # interim: the final head is still to come
        if not response.has_body:
            self.events.append(END)
            self._step = ResponseReader._read_spare
        elif chunked:
            self._begin_chunks()
        elif response.content_length is None:
            self._step = Reader._read_until_close
        else:
            self._left = response.content_length
            self._step = Reader._read_length

    def _frame(self, head: bytes) -> tuple[Response, bool]:
        """Have a head read that is not known by heart; tell, too, whether its body is chunked."""
        line = _status_line(head)
        if line is None:
            raise Refusal("Malformed status line")
        version, status, reason = line.groups(b"")
        if status == b"101":  # an engine would have ideas of its own about it; it is asked about the fields only
            head = b"HTTP/1.1 200 OK\r\n" + head[line.end() :]
        fields = self._split(head)
        response, chunked = frame_response(
            int(status), reason, _VERSIONS[version], fields, self._limits, len(head), self._method, self._upgrade
        )
        if response.status < 200:
            pass  # an upgrade, which was asked for with a key of its own, or rare
        elif head != self._head or self._method != self._asked:
            self._head, self._asked, self._like = head if len(head) <= MAX_SAME_BLOCK else b"", self._method, None
        else:
            # A response of its own: filters, and the core, change the one that they are handed.
            self._fields = fields.copy()
            self._like, self._like_is_chunked = response._again(Headers(self._fields)), chunked
        return response, chunked

    def _end(self, end: End) -> None:
        if self._pieces:
            self._flush()
        self.events.append(end)
        self._step = ResponseReader._read_spare

    def _hold(self, data: bytes, at: int) -> int:
        self.held += data[at:]
        return len(data)

    def _read_spare(self, data: bytes, at: int) -> int:
        self.spare = True
        return len(data)
