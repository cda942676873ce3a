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

MAX_WORKERS: Final = 256
"""Processes that share a listening socket. nginx: 1,024 (`worker_processes`)."""

TURN_PAUSE: Final = 0.002
"""How long a worker with more connections than others leaves one to them. nginx `accept_mutex_delay`: 500 ms."""

LISTEN_BACKLOG: Final = 4096
"""Connections the kernel may hold for us. nginx: 511; Go: net.core.somaxconn, mostly 4096."""

ACCEPT_PAUSE: Final = 1.0
"""How long nothing is accepted when there are no descriptors left. asyncio: 1 s; nginx: 0.5 s."""

# --- TLS ---------------------------------------------------------------------

TLS_HANDSHAKE_TIME: Final = 60.0
"""How long a handshake may take where `request_timeout_sec` is 0. nginx and asyncio: 60 s."""

TLS_CLOSE_TIME: Final = 5.0
"""How long a peer may take to answer close_notify, on trio. nginx `lingering_timeout`: 5 s."""

TLS_WATCH_PERIOD: Final = 5.0
"""Between two looks at certificate files. Traefik and Envoy get told by inotify; cert-manager renews weeks ahead."""

# --- hosts and paths ---------------------------------------------------------

MAX_HOST_SIZE: Final = 261
"""A Host field: a name of 255 (RFC 1035 section 2.3.4), a colon and a port. It bounds the labels a router looks at."""

MAX_PATTERN_SEGMENTS: Final = 128
"""Segments of one path pattern. It bounds the depth of a look-up; a path has at most 4096 in `MAX_HEADER_SIZE`."""

# --- attempts ----------------------------------------------------------------

MAX_ATTEMPTS: Final = 11
"""Attempts of one exchange, whoever asks for them. Behaviour 4.5: `retry.max_retries` is at most 10."""

RETRY_BACKOFF: Final = 25
"""Milliseconds that a first retry waits at most, twice as many each further one. Behaviour 11.5; Envoy: 25 ms."""

MAX_RETRY_BACKOFF: Final = 250
"""Milliseconds that any retry waits at most, unless the upstream asked for longer. Behaviour 11.5; Envoy: 250 ms."""

RING_POINTS: Final = 160
"""Places of an endpoint of average weight on a hash ring: shares within about 10 %. ketama: 160; Envoy: 1,024 in all at least."""

MAX_RING_STEPS: Final = 4096
"""Places of a ring that are looked at for one that may be used. HAProxy's `hash-balance-factor` walks all of it."""

EWMA_DECAY: Final = 10.0
"""Seconds in which a latency's part in the average falls to a third. Finagle's peak EWMA: 10 s."""

FAILURE_LATENCY: Final = 1.0
"""Seconds that an attempt that failed counts as, at least: failing fast is not being fast. Finagle's peak EWMA does not tell them apart."""

PICKS: Final = 3
"""How often an algorithm is asked for an endpoint that was not tried yet, before they are gone through. Envoy: 3, in its examples."""

SLOW_START_STEP: Final = 1.0
"""Seconds between two steps of an endpoint that starts slowly. Envoy computes the share at every pick."""

SLOW_START_LEAST: Final = 0.1
"""The share of its weight that such an endpoint begins with. Envoy `min_weight_percent`: 10 %."""

CHECKS_AT_ONCE: Final = 16
"""Health checks of one upstream that are under way at once. Envoy has no bound; nginx Plus checks one after the other."""

CHECK_BYTES: Final = 16384
"""The head of a health check's answer, or the message of one in gRPC; no more is read. HAProxy: `tune.bufsize`, 16 KiB."""

ATTEMPT_DELAY: Final = 0.25
"""How long one address may take before the next is tried as well. RFC 8305 section 5: 250 ms."""

MAX_ADDRESSES: Final = 64
"""Addresses of one name that are used. glibc reads what fits in 64 KiB; Envoy uses all."""

MAX_TARGETS: Final = 64
"""Targets of one service that are used, the preferred ones first. HAProxy's `server-template` asks for a number; Consul answers with 3 over UDP."""

MAX_RESOLVE_QUEUE: Final = 10_000
"""Look-ups that wait for a thread; what comes then fails. Behaviour 18: 10,000."""

RESOLVE_AGAIN: Final = 5.0
"""Seconds until a name that could not be resolved is tried again, if its refresh is not sooner. Envoy's `dns_refresh_rate`: 5 s."""

TTL_LEAST: Final = 5.0
"""Seconds for which an answer of the DNS holds at least, whatever it says. Envoy's `dns_min_refresh_rate`: 5 s."""

TTL_MOST: Final = 3600.0
"""Seconds after which a name is looked up again, however long its answer holds. CoreDNS's `cache`: at most 3,600 s."""

MAX_UNPROCESSED: Final = 6
"""How often one attempt is begun anew because an upstream refused the stream, or had said GOAWAY. Go's http2: 6 times at once."""

MAX_OVERTAKEN: Final = 100
"""As that, where others were answered on each connection that was ended: by chance the turn comes sooner. HAProxy: no bound but time."""

MAX_HELD_BODY: Final = 64 << 20
"""A body that a setting says to hold whole, either way. Behaviour 11.3: 64 MiB; nginx writes it to a file instead."""

MAX_MIRRORED: Final = 100
"""Copies of one route's requests that are under way at once, from the head of the request on; more are not sent. Envoy: as many as the cluster's circuit breaker lets through."""

WARM_INTERVAL: Final = 1.0
"""How often it is seen to that enough connections wait. Envoy's preconnect: with each request; HikariCP: every 30 s, and at each loss."""

WARM_INTERVAL_MOST: Final = 30.0
"""The same while connecting fails, after twice as long each time. gRPC connection backoff: 120 s at most."""

MAX_HEDGED: Final = 100
"""Second attempts to one upstream that are under way at once; beyond it the first one is waited for. gRPC: `maxAttempts`, 5 a call, and its throttling."""

HEDGE_LATENCIES: Final = 128
"""Answers of which a percentile is taken for hedging. Finagle's backup requests: all of the last 30 s, in a histogram."""

MIRROR_TIME: Final = 30.0
"""How long a copy may take in all. Envoy: the route's own timeout, mostly 15 s."""

MIRROR_BYTES: Final = 1 << 20
"""How much of the answer to a copy is read before its connection is given up. nginx `mirror`: all of it."""

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

MAX_PID_FILE: Final = 32
"""Bytes read of a pid file. Linux: pids have 7 digits at most."""

MAX_LOCK_TRIES: Final = 1000
"""How often a start tries to lock it while others only ask who has it, some 2 us each. SQLite gives up at once, unless told."""

CONTROL_PATIENCE: Final = 10.0
"""How long the other end of a control socket may take. HAProxy's `stats timeout`: 10 s."""

MAX_CONTROL_QUESTION: Final = 65536
"""Bytes of a question to it. HAProxy: 16 KiB."""

MAX_CONTROL_ANSWER: Final = 64 << 20
"""Bytes of an answer that a command reads. It bounds what a broken gateway can do to it; HAProxy sends without a bound."""

MAX_CONTROL_CALLS: Final = 16
"""Questions that are answered at once. HAProxy: 10 (`stats maxconn`)."""

MAX_PASSED_DESCRIPTORS: Final = 64
"""Descriptors that come with one message. Linux: 253 (SCM_MAX_FD)."""

MAX_SHARED_MEMORIES: Final = 256
"""Memories that the workers share. nginx: its `zone`s, without a bound."""

WORKER_BACKOFF: Final = 0.1
"""From the death of a worker to the next one in its place, at first; doubled each time. systemd `RestartSec`: 0.1 s."""

WORKER_BACKOFF_MOST: Final = 10.0
"""The longest that it becomes. Kubernetes: 5 minutes; but we hold a port that clients wait at."""

WORKER_SOUND_TIME: Final = 10.0
"""A worker that lived so long begins with the shortest again. Kubernetes: 10 minutes."""

WORKER_PATIENCE: Final = 60.0
"""How long a worker may take to answer the supervisor. A configuration of 100,000 routes takes some 10 s to load; gunicorn's `timeout`: 30 s."""

APP_STARTS: Final = 60.0
"""How long an ASGI application may take to start up, and to shut down when no configuration names it any more. Hypercorn: 60 s; uvicorn has no bound."""

APP_LEAVES: Final = 5.0
"""How long an ASGI application may go on when nobody wants its answer any more. Gunicorn's workers have 30 s; uvicorn has no bound."""

FIGURES_PATIENCE: Final = 5.0
"""How long a worker may take to say its figures, before those that it said last are shown. Prometheus waits 10 s in all."""

MAX_FIGURES_ASKED: Final = 16
"""Requests of one worker for the figures of all that are under way at once; more wait. HAProxy: 10 (`stats maxconn`)."""

UPGRADE_TIME: Final = 60.0
"""How long a new program may take to serve before the old one goes on by itself. HAProxy: no bound."""

MAX_RELOAD_HISTORY: Final = 32
"""Reloads that are remembered for who asks. Envoy keeps one version and its time per resource."""

MAX_DESCRIPTOR_WISH: Final = 1 << 20
"""Descriptors that are asked of the system, if it allows so many. nginx: `worker_rlimit_nofile`; Go: all that are allowed."""

SPARE_DESCRIPTORS: Final = 64
"""Descriptors beyond those of connections: logs, sockets, the loop's own. nginx counts two a connection and says nothing of the rest."""

DRAIN_QUIET_TIME: Final = 0.25
"""A connection of a draining gateway is closed when it was silent for so long: a request may be on its way. nginx closes at once, and such requests are lost."""

MAX_MEMORY_NAME: Final = 200
"""Characters of a shared memory's name that the kernel is told. Linux: 249 of a memfd."""

MAX_OLD_GENERATIONS: Final = 16
"""Configurations that are kept for exchanges which began on them. nginx keeps a whole set of workers for each, without a bound; HAProxy has `mworker-max-reloads`."""

GC_THRESHOLD: Final = (50_000, 10, 10)
"""Containers made, beyond those freed, before the cycle collector runs in `gw serve`. CPython 3.13: 2,000; Instagram: off."""

HEAP_SLACK: Final = 4 << 20
"""Free memory at the end of the heap that is kept rather than returned to the kernel. glibc: 128 KiB; jemalloc: by time."""

HEAP_PAD: Final = 1 << 20
"""By how much more than needed the heap grows at a time. glibc: 128 KiB."""

HEAP_MAPPED: Final = 4 << 20
"""An allocation of this size gets a mapping of its own. glibc: 128 KiB, and by itself up to 32 MiB as such are freed."""

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

MAX_JOINED_WRITE: Final = 16384
"""A body part that is longer is copied neither from behind the head it came with nor to behind the head it goes with. nginx `postpone_output`: 1460."""

# --- HTTP/2 ------------------------------------------------------------------

FLOOD_PERIOD: Final = 10.0
"""Over which frames that may be a flood are counted. Behaviour 7.3: a fixed window of 10 s."""

FLOOD_SETTINGS: Final = 100
"""SETTINGS in that time (CVE-2019-9515). Behaviour 7.3."""

FLOOD_PINGS: Final = 50
"""PINGs (CVE-2019-9512). Behaviour 7.3."""

FLOOD_RESETS: Final = 100
"""Streams reset, by the peer (CVE-2023-44487) or by us on its provocation (CVE-2025-8671). Behaviour 7.3."""

FLOOD_EMPTY_DATA: Final = 100
"""DATA frames with nothing in them and no end (CVE-2019-9518). Envoy: 1 in a row."""

FLOOD_PRIORITIES: Final = 1000
"""PRIORITY (CVE-2019-9513), PRIORITY_UPDATE and frames nobody knows. Envoy: 100 a stream."""

FLOOD_WINDOW_UPDATES: Final = 1000
"""WINDOW_UPDATEs beyond ten for each DATA frame sent (CVE-2019-9517). Envoy: 10 a frame, and 5 and 2 a stream."""

FLOOD_UPSTREAM: Final = 10_000
"""Frames of each of these kinds that an upstream may send in that time: it answers us. gRPC sends a PING for every window that it measures."""

MAX_CONTINUATIONS: Final = 8
"""CONTINUATION frames of one head (CVE-2024-27316). nghttp2: 8."""

MAX_GONE_STREAMS: Final = 64
"""Streams that a client left out, or that we reset and it never ended, of which is known that they are gone. nghttp2 once kept 100 closed ones."""

MAX_HEADER_BOMB: Final = 4
"""A header list this many times its limit ends the connection while it is being decoded; up to there, the stream. HPACK's ratio is 1:4000."""

PULL_SIZE: Final = 131072
"""Bytes taken at a time from what writes by being pulled, such as an HTTP/2 session. Behaviour 7.2: 128 KiB."""

MAX_QUEUED: Final = 1 << 20
"""Bytes of all responses of one connection that may wait for its client; beyond it each waits at `MIN_QUEUED`. Envoy `per_connection_buffer_limit_bytes`: 1 MiB."""

MIN_QUEUED: Final = 16_384
"""What any one of them may have waiting all the same: a frame. RFC 9113 section 4.2: every receiver takes frames of 16 KiB."""

GOAWAY_NOTICE: Final = 1.0
"""From the notice of a shutdown to the final GOAWAY, at most: a round trip. Envoy `drain_timeout`: 5 s."""

RESET_DELAY: Final = 0.1
"""From the end of a response to the reset of a request that goes on. nginx resets at once; its `lingering_timeout` for HTTP/1.1: 5 s."""

SETTINGS_TIME: Final = 10.0
"""How long a client that has said nothing may take for its first frames, where `request_timeout_sec` is 0. Go: 10 s."""

CLOSING_GRACE: Final = 1.0
"""What plugins get to end their background work beyond the time to drain. Behaviour 17.8: nothing beyond it; nginx: no bound."""

MAX_KEPT_MODELS: Final = 8
"""Models of whole configurations, one for each set of plugins; building one takes tens of milliseconds. `re` keeps 512 patterns."""

# --- figures -----------------------------------------------------------------

MAX_LABEL_VALUES: Final = 256
"""Distinct values of one label of one figure; later ones count as ``__overflow__`` (behaviour 17.5). Envoy: unbounded."""

MAX_SERIES: Final = 10_000
"""Combinations of them in one figure. OpenTelemetry's SDKs stop at 2,000 an instrument."""

# --- WebSocket ----------------------------------------------------------------

MAX_WS_MESSAGE_SIZE: Final = 16 << 20
"""`max_ws_message_size`. Behaviour 4.1: 16 MiB; the websockets library: 1 MiB; nginx looks at no messages."""

WS_CLOSE_TIME: Final = 5.0
"""From the first Close frame to the end of the connection, at most. Behaviour 8.2: 5 s; websockets: 10 s."""

WS_HANDLER_ENDS: Final = 5.0
"""How long a handler of ours may go on after its WebSocket has ended. aiohttp's `shutdown_timeout`: 60 s."""

INFLATE_STEP: Final = 65536
"""Bytes that a compressed message is inflated to at a time, and checked, before more of it is. zlib's own example: 16 KiB."""

# --- the gateway's own calls -------------------------------------------------

CALLER_CONNECTIONS: Final = 16
"""Connections of one caller; further calls wait, within their own time. httpcore: 10; Envoy's jwt_authn shares a cluster's 1,024."""

CALLER_IDLE_TIME: Final = 30.0
"""How long one of them waits for the next call. httpx: 5 s; OpenTelemetry's exporters keep theirs for ever."""
