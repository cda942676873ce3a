"""Every bound in the core, each with its precedent. A limit that a user may set names its key.

Sizes are bytes, times are seconds, unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

# --- message heads -----------------------------------------------------------

MAX_HEADER_SIZE: Final = 8192
"""`max_header_size`. Target + names + values + 4 a line (behaviour 6.1). nginx 8 KiB a line, Envoy 60 KiB in all."""

MAX_HEADER_COUNT: Final = 100
"""Field lines in one head or one trailer section. Envoy and Apache: 100."""

MAX_CHUNK_OVERHEAD: Final = 16384
"""Bytes of chunk-size lines and extensions that one body may carry beyond 16 a chunk. Node: 16 KiB (CVE-2024-22019)."""

MAX_TRAILER_SIZE: Final = 8192
"""One trailer section, accounted as a head; also bounded by `max_header_size` (behaviour 6.1)."""

MAX_RESPONSE_HEADER_SIZE: Final = 65536
"""The head of an upstream's response. Envoy: 60 KiB; nginx: 4-8 KiB."""

MAX_INTERIM_RESPONSES: Final = 32
"""1xx responses relayed in one exchange. Go's net/http: 5; curl bounds their total size instead."""

# --- connections -------------------------------------------------------------

READ_HIGH_WATER: Final = 65536
"""Unread bytes at which a socket is no longer read. asyncio's stream reader: 64 KiB; one read may add the loop's own."""

WRITE_HIGH_WATER: Final = 262144
"""`http1.streaming.high_water_bytes`: unsent bytes at which the sender waits (behaviour 4.4). Node: 16 KiB; Envoy: 1 MiB."""

WRITE_LOW_WATER: Final = 65536
"""`http1.streaming.low_water_bytes`: unsent bytes at which it goes on (behaviour 4.4). Envoy: half the high mark."""

CLOSE_FLUSH_TIME: Final = 30.0
"""How long a closed connection may take to pass on what was written. Behaviour 1: 30 s."""

HALF_CLOSE_GRACE: Final = 5.0
"""A client that has shut its direction and to which nothing was sent for so long is taken to have left. Behaviour 1: 5 s."""

LINGER_TIME: Final = 30.0
"""How long we read and discard after an answer that came before the request's end. nginx `lingering_time`: 30 s."""

LINGER_IDLE: Final = 5.0
"""The longest pause in that. nginx `lingering_timeout`: 5 s."""

SALVAGE_BYTES: Final = 1 << 20
"""Read at most from a socket whose write side failed: the response that was already there. Linux `tcp_rmem`: up to 6 MiB wait there."""

LISTEN_BACKLOG: Final = 4096
"""Connections the kernel may hold for us. nginx: 511; Go: net.core.somaxconn, mostly 4096."""

# --- hosts and paths ---------------------------------------------------------

MAX_HOST_SIZE: Final = 261
"""A Host field: a name of 255 (RFC 1035 section 2.3.4), a colon and a port. It bounds the labels a router looks at."""

MAX_PATTERN_SEGMENTS: Final = 128
"""Segments of one path pattern. It bounds the depth of a look-up; a path has at most 4096 in `MAX_HEADER_SIZE`."""

# --- attempts ----------------------------------------------------------------

MAX_ATTEMPTS: Final = 11
"""Attempts of one exchange, whoever asks for them. Behaviour 4.5: `retry.max_retries` is at most 10."""

MIN_RATE_GRACE: Final = 5.0
"""How long a body may be slower than `min_body_rate` at first. Kestrel `MinDataRate.GracePeriod`: 5 s."""

# --- configuration -----------------------------------------------------------

MAX_CONFIG_SIZE: Final = 64 << 20
"""A configuration file. 100,000 routes written out take about 20 MiB; Kubernetes stops at 1.5 MiB an object."""

MAX_CONFIG_DEPTH: Final = 64
"""How deep its lists and mappings nest. Python's json gives up near 1,000; no key of ours is deeper than 10."""

MAX_CONFIG_VALUES: Final = 5_000_000
"""Keys, items and scalars once aliases are expanded. It bounds a "billion laughs"; go-yaml has the same kind of bound."""

MAX_CONFIG_PROBLEMS: Final = 100
"""Problems shown at once. gcc and clang stop at 20 to 100; the count of the others is said."""

MAX_VALUE_FILE_SIZE: Final = 1 << 20
"""What `{file: path}` may read. Kubernetes: 1 MiB a secret."""

SEND_STALL_TIME: Final = 30.0
"""How long an upstream may take nothing of a request. Behaviour 11.2: `response_timeout_ms`, or 30 s."""

# --- cutting HTTP/1.1 messages -----------------------------------------------

HEAD_SLACK: Final = 256
"""Bytes that a head or trailer section may have beyond its limit, for what the accounting leaves out: method, version, blanks. llhttp has no limit; ours is in what we gather."""

MAX_UNLIMITED_SECTION: Final = 1 << 20
"""A head or trailer section whose limit is 0. Go's net/http `DefaultMaxHeaderBytes`: 1 MiB."""

MAX_EMPTY_LINES: Final = 10
"""Empty lines before a request (RFC 9112 section 2.2). Apache counts them against a limit of 100; nginx and llhttp do not count."""

MAX_REQUEST_ID_LENGTH: Final = 128
"""A request identifier that a trusted client may bring. Envoy keeps any; UUIDs have 36 characters."""

# --- lists in field values ---------------------------------------------------

MAX_LIST_ELEMENTS: Final = 64
"""Elements read of a list such as `Accept`; a browser sends 8. Varnish and Envoy look at all, within the head's size."""

MAX_FORWARDED_HOPS: Final = 32
"""Proxies that X-Forwarded-For or Forwarded are walked through. Envoy `xff_num_trusted_hops` is a handful; CDNs chain 3 to 5."""

MAX_ADDRESS_SIZE: Final = 72
"""Characters of one address in them: 45 of IPv6, 2 brackets, 16 of a zone (IFNAMSIZ), 6 of a port, rounded up. RFC 7239 sets no bound."""

MAX_PARSED_ADDRESSES: Final = 1024
"""Addresses remembered with what they parse to, 5 us each; about 300 KiB. A front proxy has a handful of busy clients at a time."""

# --- logs --------------------------------------------------------------------

MAX_LOG_BACKLOG: Final = 4 << 20
"""Bytes that wait for a slow disk in one log; what comes then is lost, and counted. spdlog: 8,192 lines, about as much."""

LOG_BATCH_SIZE: Final = 65536
"""Characters of access log that are written without waiting for the ticker. Envoy flushes at 64 KiB; nginx `buffer=` is mostly 64k."""

LOG_CLOSE_TIME: Final = 5.0
"""How long a closing log may take to write what waits. systemd gives a service 90 s to stop; Docker 10 s."""

# --- the process -------------------------------------------------------------

GC_THRESHOLD: Final = (50_000, 10, 10)
"""Containers made, beyond those freed, before the cycle collector runs in `gw serve`. CPython 3.13: 2,000; Instagram: off."""

# --- the echo upstream -------------------------------------------------------

ECHO_HEAD_SIZE: Final = 65536
"""A request's head, as the echo upstream takes it: more than a gateway in front of it lets pass. Go's net/http: 1 MiB."""

ECHO_BODY: Final = 1 << 20
"""Bytes of a body that it says back; of a longer one it gives the size and the digest. `max_body_size` is as large."""

ECHO_NUMBER: Final = 1 << 32
"""The largest `n` of `/bytes` and `/stream`. httpbin stops at 100 KiB, because it holds what it sends; we do not."""

ECHO_DELAY: Final = 600_000
"""Milliseconds that `/slow` waits at most. httpbin's `/delay`: 10 s."""

# --- what an engine remembers ------------------------------------------------

MAX_SEEN_LINE: Final = 128
"""The longest response field line that is remembered. Nginx's variable hash buckets: 64; most lines have under 60."""

MAX_SEEN_LINES: Final = 512
"""How many; then it begins anew. HPACK's table (RFC 7541): 4,096 bytes, some 70 lines, a connection."""

MAX_SAME_BLOCK: Final = 1024
"""The largest block of request fields that a connection compares its next one with. A browser sends 500 to 900 bytes."""

# --- sending -----------------------------------------------------------------

MAX_HELD_WRITE: Final = 65536
"""A write that is larger is not held back to the end of the loop's turn. Node's cork(): no bound; one read here: 64 KiB."""
