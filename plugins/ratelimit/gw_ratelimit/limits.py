"""Every bound of the plugin, each with its precedent. A limit that a user may set names its key.

Sizes are bytes, times are seconds, unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BATCH",
    "BREAKER_FAILURES",
    "BREAKER_TIME",
    "DIGESTS",
    "LEASED",
    "LEASED_KEYS",
    "LEASE_FILES",
    "LEASE_TIME",
    "LEASING",
    "LEAST_LEVEL",
    "LOCK_TRIES",
    "MAX_COST",
    "MAX_EXACT",
    "MAX_KEY",
    "MAX_QUEUED",
    "MAX_SAID",
    "SAMPLED_SETS",
    "TABLE_ENTRIES",
    "TOP_KEYS",
    "TOP_SHOWN",
    "WAYS",
]

# --- keys and tables ---------------------------------------------------------

WAYS: Final = 16
"""Places of one set, in which a key may stand. CPU caches have 8 to 16; memcached's slabs are one list, and need a lock each."""

TABLE_ENTRIES: Final = 100_000
"""Keys of a zone or a shared table, unless `max_entries` says otherwise. Behaviour 4.6: 100,000."""

MAX_KEY: Final = 128
"""Characters of a key that are sent to a store or shown; of a longer one the digest is. memcached: 250 bytes."""

DIGESTS: Final = 1024
"""Keys of a zone in a shared table whose digests a worker remembers: some 250 KiB. Django's `lru_cache`s hold 128 to 512."""

TOP_KEYS: Final = 64
"""Keys of a zone that are counted because they were denied. Space-saving errs by 1/64 of all denials then; Kong counts none."""

TOP_SHOWN: Final = 10
"""How many of them the statistics show. Redis' `--hotkeys` shows 16."""

SAMPLED_SETS: Final = 1024
"""Sets that are looked at to say how many keys are held. Redis' `maxmemory-samples` is 5, to choose one victim."""

MAX_COST: Final = 1_000_000
"""Tokens that a header may charge one request. GitHub's GraphQL limit: 500,000 nodes a call."""

LEAST_LEVEL: Final = -9_000_000_000_000_000
"""How far response bytes may overdraw a bucket, in millionths of a token: what a double holds exactly. Envoy's are not charged afterwards."""

# --- the shared table --------------------------------------------------------

LOCK_TRIES: Final = 2000
"""How often a worker tries to get a set that another holds: about 0.3 s, if that one was not killed, but stopped. nginx' shared zones spin for ever."""

# --- requests under way ------------------------------------------------------

LEASING: Final = 511
"""Processes that count requests together: twice the workers that a gateway may have, since those that drain count, too. nginx: 1,024."""

LEASED: Final = 1 << 17
"""Requests that one worker may have under way for one key, and be counted. nginx' `limit_conn` has 65,535 for all."""

LEASED_KEYS: Final = 8192
"""Keys for which one worker may have requests under way that are counted. The kernel walks through a 16th of all workers'
at each call, some 3 us for 600; nginx' `limit_conn_zone` of 1 MiB has room for 16,000."""

LEASE_FILES: Final = 16
"""Files whose locks are the counts; a worker has a descriptor of each. Memcached has 4 to 16 item locks for so many threads."""

# --- Redis -------------------------------------------------------------------

MAX_EXACT: Final = 9_000_000_000_000_000
"""The largest number that a script reckons with; Lua's are doubles (2^53). A bucket counts millionths of a token: 9,000,000,000 tokens."""

BATCH: Final = 128
"""Decisions in one call of the script, some 0.2 ms of Redis' only thread. Lettuce flushes by 50 commands."""

MAX_QUEUED: Final = 4096
"""Decisions that wait for the store; those that come then are made as if it were away. Envoy: 1,024 pending requests a cluster."""

LEASE_TIME: Final = 15.0
"""Requests under way count in the store for so long unless they are said again, which happens three times as often. etcd's and
Consul's leases: 10 s and more."""

MAX_SAID: Final = 4096
"""Keys of which the store is still to be told how many requests are under way; what is not told, it forgets in `LEASE_TIME`."""

BREAKER_FAILURES: Final = 3
"""Failed calls in a row, after which the store is left alone for a while. Envoy's outlier detection: 5."""

BREAKER_TIME: Final = 1.0
"""How long; then one call tries it again. Hystrix `sleepWindowInMilliseconds`: 5 s."""
