"""How many files and sockets this process may have open."""

from __future__ import annotations

import logging
import resource

from gw.limits import MAX_DESCRIPTOR_WISH, SPARE_DESCRIPTORS

__all__ = ["raise_limit"]

log = logging.getLogger("gw.ops")


def raise_limit(clients: int, upstreams: int) -> int:
    """Allow as many as the system lets us, and return that. Warn if so many connections could need more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTOR_WISH if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTOR_WISH)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    needed = clients + upstreams + SPARE_DESCRIPTORS
    if clients and needed > soft:
        log.warning(
            "max_connections (%d) and the pools may need %d descriptors, and %d are allowed; "
            "raise the limit (LimitNOFILE, ulimit -n), or lower max_connections",
            clients,
            needed,
            soft,
        )
    return soft
