"""Every bound of the plugin that no setting moves, each with its precedent. Sizes are bytes, times are seconds."""

from __future__ import annotations

from typing import Final

MAX_TOKEN_SIZE: Final = 8192
"""A bearer token. Behaviour 16.1: 8192; a request's head has no more room by default."""

MAX_KEYS: Final = 64
"""Keys taken from one key set. Behaviour 16.6: 64; large providers publish under 10."""

MAX_KEY_SET_SIZE: Final = 256 << 10
"""A key set as it is fetched. Behaviour 16.6: 256 KiB; Envoy's jwt_authn takes any size."""

MAX_DOCUMENT_SIZE: Final = 64 << 10
"""A discovery document, an introspection answer. Behaviour 16.5 and 16.7: 64 KiB; the documents of large providers have 2 to 8."""

DISCOVERY_TIME: Final = 10.0
"""One call for a discovery document. Behaviour 16.5: 10 s; oauth2-proxy waits as long."""

MAX_WAITING: Final = 1024
"""Requests of one issuer that wait for its key set. Envoy's jwt_authn lets any number wait; a worker's connections bound it there."""

MIN_RSA_BITS: Final = 2048
"""An RSA key below this is not used. RFC 7518 section 3.3: 2048 or more; PyJWT warns of smaller ones."""

MAX_RSA_BITS: Final = 8192
"""An RSA key above this is not used: a check of 16384 bits takes a millisecond. Go's crypto/tls stops at 8192 too."""

MAX_INTROSPECTIONS: Final = 256
"""Introspection calls of one issuer that are in the air or wait for a connection. Envoy's circuit breaker: 1,024 pending requests."""

MAX_KEPT_ANSWER: Final = 8192
"""An introspection answer that is larger is used once and not kept. Redis and memcached shops mostly set 8 to 64 KiB an item."""

BREAKER_FAILURES: Final = 5
"""Introspection calls that fail one after the other before a provider is left alone. Behaviour 4.5: `consecutive_failure_threshold` 5."""

BREAKER_TIME: Final = 1.0
"""How long it is left alone the first time; twice as long each time after. Behaviour 4.5: 5 s; a provider is asked for every new token."""

BREAKER_MAX_TIME: Final = 30.0
"""The longest. Behaviour 4.5: `max_open_duration_ms` 60 s."""

MAX_RETRY_AFTER: Final = 300
"""`Retry-After` of an undetermined answer. Behaviour 16.4: 1 to 300 s; Google's APIs say up to an hour."""

MAX_DASHES: Final = 8
"""Dashes in the name of an identity header: its spellings with `_` are removed too, and there are 2 to this power. nginx drops all names with `_`."""

MAX_CREDENTIALS_SIZE: Final = 1024
"""User and password, or an API key, as they are sent. bcrypt reads 72 bytes of a password; Apache takes a line of 8190."""

MAX_PASSWORD_SIZE: Final = 72
"""Bytes of a password that bcrypt looks at; a longer one is refused. OpenBSD's bcrypt cuts it off silently."""

MAX_PASSWORD_CHECKS: Final = 8
"""Password checks at once, each 50 ms or more of a thread. Apache's worker: one a thread, 25 a process."""

MAX_REMEMBERED_PASSWORDS: Final = 1024
"""Passwords of one list that were right lately, as keyed digests. Apache's mod_authn_socache keeps any number for 300 s."""

PASSWORD_MEMORY_TIME: Final = 300.0
"""How long. Apache's `AuthnCacheTimeout`: 300 s."""

MAX_VERDICTS: Final = 10_000
"""Verdicts of one forward-auth service that are kept. Envoy's ext_authz keeps none; nginx's proxy_cache is sized by the operator."""

MAX_VERDICT_TIME: Final = 3600.0
"""How long the service may ask us to keep one. RFC 9111 sets no bound; CDNs cap at a day or more."""

MAX_CERTIFICATES: Final = 10_000
"""Clients' certificates of one list whose owner is remembered. nginx's shared session cache holds 4,000 in a MiB."""

MAX_LOGGED_VALUE: Final = 200
"""Characters of a claim in a log line or an explanation. Behaviour 20 cuts nothing; syslog lines have 1,024."""

MAX_PASSWORDS_WAITING: Final = 64
"""Passwords of one list that are being checked or wait for a thread. Four times 8 threads of 50 ms is what a client waits for a page."""
