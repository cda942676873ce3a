"""What the section ``auth`` may say, at the gateway, in ``upstreams[].proxy`` and in a route.

Everything that can be wrong within one group of keys is found here, when it loads; what concerns names, upstreams and
routes is checked in `gw_auth.checks`. The models hold what was written; what runs is made in `gw_auth.runtime`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, SecretStr, model_validator

from gw import Section
from gw_auth.limits import MAX_DASHES

__all__ = [
    "ApiKeys",
    "Auth",
    "Basic",
    "CertificateHolder",
    "Certificates",
    "Forward",
    "ForwardAuth",
    "GatewayPolicy",
    "InlinePolicy",
    "Introspection",
    "Issuer",
    "IssuerTls",
    "Leaf",
    "Policy",
    "RoutePolicy",
    "is_loopback",
]

# --- single values -----------------------------------------------------------

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 section 3.3
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9\-._~!$&'()*+,;=:@%]*)+", re.ASCII)
_MISSPELT: Final = re.compile(r"%(?!(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[BCDF]))", re.ASCII)
"""An escape without two upper-case digits, or of a character that needs none (RFC 3986 section 2.3)."""
_HOST: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]", re.ASCII)
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ALTERNATIVE: Final = re.compile(r"(?:DNS|URI|email):[\x21-\x7e]+")

_RESERVED: Final = frozenset(
    {
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-auth-undetermined",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    }
)


def _not_blank(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be a name: printable, and not only spaces")
    return text


def _output_header(name: str) -> str:
    if not name:
        return name
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    if name.lower() in _RESERVED:
        raise ValueError(f"{name} has a meaning of its own; choose another header")
    if name.count("-") + name.count("_") > MAX_DASHES:
        raise ValueError(f"{name} has more than {MAX_DASHES} dashes; choose a shorter name")
    return name


def _input_header(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not a header name")
    return name.lower()


def _shown_header(name: str) -> str:
    name = _input_header(name)
    allowed = {"authorization", "content-type", "content-encoding"}
    if name.startswith("x-forwarded-") or (name in _RESERVED and name not in allowed):
        raise ValueError(
            f"{name} is not a header of the request to show: the gateway writes it itself, or it is about one connection"
        )
    return name


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine: 127.x, ::1 or localhost (behaviour 5)."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{text!r} is not a URL") from None
    if not text.isascii() or not text.isprintable() or " " in text or not host or parts.fragment:
        raise ValueError(f"{text!r} is not a URL of a host, without fragment")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not have user or password in it")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError(f"must begin with https:// (http:// only for this machine itself), not {text!r}")
    return text


def _url_or_nothing(text: str) -> str:
    return _url(text) if text else text


def _issuer_url(text: str) -> str:
    if "?" in text:
        raise ValueError("must have no query (OpenID Connect Discovery section 3)")
    return _url(text)


def _prefix(text: str) -> str:
    """Accept a literal path in the one spelling that request paths have; without its last slash."""
    if text in {"", "/"}:
        return ""
    if not text.startswith("/"):
        raise ValueError(f"must be empty or start with '/', not {text!r}")
    dots = any(segment in {".", ".."} for segment in text.split("/"))
    if not _PREFIX.fullmatch(text) or "//" in text or dots or _MISSPELT.search(text):
        raise ValueError(
            f"{text!r} is not spelled as the gateway spells paths; percent-encode in upper case what needs it, and nothing else"
        )
    return text.removesuffix("/")


def _host(text: str) -> str:
    text = text.lower().removesuffix(".")
    if not _HOST.fullmatch(text):
        raise ValueError(f"{text!r} is neither a host without port nor '*.' and a domain")
    return text


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text) or text != text.upper():
        raise ValueError(f"{text!r} is not a method; methods are case-sensitive")
    return text


def _scope(text: str) -> str:
    if not _SCOPE.fullmatch(text):
        raise ValueError(f"{text!r} is not a scope: printable ASCII without spaces, quotes and backslashes")
    return text


def _variable(text: str) -> str:
    if text and not _ENV.fullmatch(text):
        raise ValueError(f"must be the name of an environment variable, not {text!r}")
    return text


def _distinct(items: tuple[str, ...]) -> tuple[str, ...]:
    for index, item in enumerate(items):
        if item in items[:index]:
            raise ValueError(f"lists {item!r} twice")
    return items


def _digest(value: SecretStr) -> SecretStr:
    if not _SHA256.fullmatch(value.get_secret_value()):
        raise ValueError("must be the SHA-256 of a key, as 64 hexadecimal digits in lower case")
    return value


def _alternative(text: str) -> str:
    if text and not _ALTERNATIVE.fullmatch(text):
        raise ValueError(f"must be DNS:, URI: or email: and a name, not {text!r}")
    return f"DNS:{text[4:].lower()}" if text.startswith("DNS:") else text


def _fingerprint(text: str) -> str:
    plain = text.replace(":", "").lower()
    if plain and not _SHA256.fullmatch(plain):
        raise ValueError("must be the SHA-256 of a certificate, as 64 hexadecimal digits with or without colons")
    return plain


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"must be a power of two, not {value}")
    return value


Name = Annotated[str, AfterValidator(_not_blank)]
Names = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
OutputHeader = Annotated[str, AfterValidator(_output_header)]
InputHeader = Annotated[str, AfterValidator(_input_header)]
ShownHeader = Annotated[str, AfterValidator(_shown_header)]
Url = Annotated[str, AfterValidator(_url)]
UrlOrNothing = Annotated[str, AfterValidator(_url_or_nothing)]
IssuerUrl = Annotated[str, AfterValidator(_issuer_url)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], AfterValidator(_distinct)]
Methods = Annotated[tuple[Annotated[str, AfterValidator(_method)], ...], AfterValidator(_distinct)]
Scopes = Annotated[tuple[Annotated[str, AfterValidator(_scope)], ...], AfterValidator(_distinct)]
Variable = Annotated[str, AfterValidator(_variable)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class Group(BaseModel):
    """What all groups of keys have in common: unknown keys are errors, values do not change."""

    model_config = Section.model_config


# --- issuers -----------------------------------------------------------------


class IssuerTls(Group):
    """How the provider's certificate is verified, where no `upstream` says so."""

    ca_file: str = ""
    """A file of certificates in PEM to trust instead of the usual authorities."""
    verify: bool = True
    """Whether the certificate is verified at all."""


class Introspection(Group):
    """Asking the provider about each token (RFC 7662)."""

    endpoint: UrlOrNothing = ""
    """Where to ask; needed where discovery is off, otherwise it is discovered."""
    client_id: Name
    """Who the gateway is, for the provider."""
    client_secret_env: Variable = ""
    """The environment variable that holds its secret. Read whenever the configuration is."""
    client_secret_file: str = ""
    """The file that holds it; the other way."""
    auth_style: Literal["basic", "body"] = "basic"
    """Whether the secret goes in `Authorization` or among the form's fields."""
    timeout_sec: Positive = 3
    """How long an answer may take."""
    cache_sec: Positive = 60
    """How long an active token is remembered, its own end permitting."""
    negative_cache_sec: Natural = 10
    """How long an inactive token is remembered; 0 means not."""
    stale_grace_sec: Natural = 30
    """How long after that an active token still counts when the provider gives no answer; 0 means not."""
    max_entries: Positive = 100_000
    """Tokens remembered, active and inactive."""
    shards: Annotated[int, Field(ge=1, le=64), AfterValidator(_power_of_two)] = 16
    """Accepted for the reference's sake; a worker needs no shards."""
    signed: bool = False
    """Ask for signed answers (RFC 9701), and take no others."""

    @model_validator(mode="after")
    def _one_secret(self) -> Introspection:
        if bool(self.client_secret_env) == bool(self.client_secret_file):
            raise ValueError("must have exactly one of client_secret_env and client_secret_file")
        return self


class Issuer(Group):
    """A provider whose tokens are accepted."""

    issuer_url: IssuerUrl
    """Its identifier, as `iss` has it, and where discovery begins."""
    mode: Literal["jwt", "introspection"] = "jwt"
    """Whether tokens are verified here, or the provider is asked about each."""
    discovery: bool = True
    """Whether endpoints are read from `/.well-known/openid-configuration` below `issuer_url`."""
    jwks_uri: UrlOrNothing = ""
    """Where its keys are, where discovery is off."""
    upstream: str = ""
    """Name of the upstream that all calls to it go to; empty means where their URLs say."""
    tls: IssuerTls = IssuerTls()
    """How its certificate is verified."""
    audiences: Names = ()
    """Audiences of which a token needs one; empty means that it needs none."""
    algorithms: tuple[Algorithm, ...] = ("RS256",)
    """Signature algorithms that are accepted."""
    token_types: Names = ()
    """What `typ` must be, such as `at+jwt` (RFC 9068); empty means anything."""
    leeway_sec: Natural = 30
    """By how much its clock may differ from ours."""
    required_claims: Names = ()
    """Claims that every token must have."""
    jwks_cache_sec: Positive = 300
    """How long its keys are good for; they are fetched again before that."""
    jwks_max_stale_sec: Natural = 3600
    """How much longer they are used while they cannot be fetched."""
    jwks_cooldown_sec: Positive = 5
    """How often at most a key that nobody has heard of makes the gateway fetch them before their time."""
    jwks_refresh_timeout_sec: Positive = 5
    """How long fetching them may take."""
    discovery_retry_sec: Positive = 30
    """How long after a failure of discovery or of fetching keys it is tried again."""
    discovery_cache_sec: Positive = 3600
    """How long after a success discovery is repeated."""
    certificate_binding: bool = True
    """Whether a token that is bound to a certificate (`cnf`, RFC 8705) counts only on connections with that certificate."""
    remembered_tokens: Natural = 10_000
    """Verified tokens that are remembered, so that their signature is not checked again."""
    introspection: Introspection | None = None
    """For mode `introspection`."""

    @model_validator(mode="after")
    def _complete(self) -> Issuer:
        if self.mode == "jwt":
            if not self.discovery and not self.jwks_uri:
                raise ValueError("has no jwks_uri, which it needs without discovery")
            if not self.algorithms:
                raise ValueError("has no algorithms; name at least one")
        elif self.introspection is None:
            raise ValueError("has mode introspection, and no introspection")
        elif not self.discovery and not self.introspection.endpoint:
            raise ValueError("has no introspection.endpoint, which it needs without discovery")
        elif self.introspection.signed and not self.discovery and not self.jwks_uri:
            raise ValueError("has no jwks_uri, which signed introspection needs without discovery")
        return self


# --- other ways in -----------------------------------------------------------


class ApiKey(Group):
    """One client's key."""

    name: Name
    """Whose it is: the subject."""
    sha256: Annotated[SecretStr, AfterValidator(_digest)]
    """The SHA-256 of the key, in hexadecimal: the key itself is written nowhere."""
    scopes: Scopes = ()
    """What it is good for."""
    expires: AwareDatetime | None = None
    """When it ends, such as `2027-01-01T00:00:00Z`."""


class ApiKeys(Group):
    """A list of clients that bring a key."""

    header: InputHeader = "x-api-key"
    """The header that carries it; it goes no further."""
    keys: tuple[ApiKey, ...] = ()
    """The keys."""

    @model_validator(mode="after")
    def _different(self) -> ApiKeys:
        seen: set[str] = set()
        for index, key in enumerate(self.keys):
            digest = key.sha256.get_secret_value()
            if digest in seen:
                raise ValueError(f"has the key of keys[{index}] ({key.name!r}) twice")
            seen.add(digest)
        return self


class Basic(Group):
    """A list of users with passwords (RFC 7617)."""

    users: SecretStr
    """The text of an htpasswd file with bcrypt hashes, mostly as `{file: htpasswd}`."""
    scopes: Scopes = ()
    """Scopes that all of them have."""


class CertificateHolder(Group):
    """One client that shows a certificate: exactly one of `san`, `subject` and `sha256` says which."""

    name: Name
    """Who it is: the subject of the identity."""
    san: Annotated[str, AfterValidator(_alternative)] = ""
    """An alternative name in the certificate with its kind, `URI:`, `DNS:` or `email:`, such as `URI:spiffe://example/billing`."""
    subject: str = ""
    """Its distinguished name, as RFC 4514 writes it, such as `CN=billing,O=Example`."""
    sha256: Annotated[str, AfterValidator(_fingerprint)] = ""
    """Its fingerprint, as `openssl x509 -fingerprint -sha256` prints it: this certificate, and not the one that follows it."""
    scopes: Scopes = ()
    """What it is good for."""

    @model_validator(mode="after")
    def _one_of(self) -> CertificateHolder:
        if sum(map(bool, (self.san, self.subject, self.sha256))) != 1:
            raise ValueError("must have exactly one of san, subject and sha256")
        return self


class Certificates(Group):
    """Clients that show a certificate in the TLS handshake. `tls.client_certificates` says which authorities are trusted."""

    clients: tuple[CertificateHolder, ...] = ()
    """Clients that are known by name; the first that fits counts."""
    others: Literal["", "URI", "DNS", "email", "subject"] = ""
    """What names anybody else with a certificate: its only alternative name of that kind, or its subject. Empty lets nobody else in."""
    scopes: Scopes = ()
    """Scopes that all of them have."""

    @model_validator(mode="after")
    def _useful(self) -> Certificates:
        if not self.clients and not self.others:
            raise ValueError("lets nobody in; name some clients, or what names others")
        seen: dict[tuple[str, str], int] = {}
        for index, each in enumerate(self.clients):
            known = seen.setdefault((each.san, each.subject + each.sha256), index)
            if known != index:
                raise ValueError(f"has the certificate of clients[{known}] ({self.clients[known].name!r}) twice")
        return self


class ForwardAuth(Group):
    """Another service that is asked about each request."""

    url: Url
    """Where it is asked, with GET."""
    upstream: str = ""
    """Name of the upstream that the calls go to; empty means where the URL says."""
    tls: IssuerTls = IssuerTls()
    """How its certificate is verified."""
    timeout_sec: Positive = 3
    """How long an answer may take."""
    request_headers: tuple[ShownHeader, ...] = ("authorization", "cookie")
    """Headers of the request that it is shown. A verdict is kept for requests that are alike in them, method and target."""
    response_headers: tuple[OutputHeader, ...] = ()
    """Headers of its answer that the upstream is sent."""
    subject_header: OutputHeader = "x-auth-subject"
    """The header of its answer that names the subject."""
    scopes_header: OutputHeader = "x-auth-scopes"
    """The header of its answer that lists scopes, with spaces between them."""


# --- policies ----------------------------------------------------------------


class Leaf(Group):
    """One way in: exactly one of the keys."""

    issuers: Names = ()
    """A bearer token of one of these issuers."""
    api_keys: str = ""
    """A key of this list of `api_keys`."""
    basic: str = ""
    """A password of this list of `basic`."""
    certificates: str = ""
    """A client's certificate of this entry of `certificates`."""
    forward_auth: str = ""
    """The consent of this entry of `forward_auth`."""

    @model_validator(mode="after")
    def _one_of(self) -> Leaf:
        keys = tuple(type(self).model_fields)
        if sum(bool(getattr(self, key)) for key in keys) != 1:
            raise ValueError(f"must have exactly one of {', '.join(keys)}")
        return self


class AnyOf(Leaf):
    """One of several ways in, or several of which all are needed."""

    all: tuple[Leaf, ...] = ()
    """All of these."""


class AllOf(Leaf):
    """One of the ways that are all needed, or several of which one is enough."""

    any: tuple[Leaf, ...] = ()
    """One of these."""


class Policy(Group):
    """Who may pass."""

    name: str = ""
    """How logs and counters call it."""
    public: bool = False
    """Whether everybody may pass: an exception below a stricter policy."""
    issuers: Names = ()
    """Issuers whose tokens are accepted. The first that introspects is asked first about tokens that do not name theirs."""
    any: tuple[AnyOf, ...] = ()
    """Other ways in, of which one is enough; instead of `issuers`."""
    all: tuple[AllOf, ...] = ()
    """Other ways in, of which all are needed; instead of `issuers`."""
    required_scopes: Scopes = ()
    """Scopes of which all are needed."""
    required_audience: str = ""
    """An audience that a token must have, instead of those of its issuer."""
    on_undetermined: Literal["deny", "allow"] = "deny"
    """What to do when it cannot be found out who is asking: `allow` passes the request on without an identity."""
    realm: str = "api"
    """`realm` of challenges."""

    def ways(self) -> int:
        """Return how many of issuers, any and all are given."""
        return sum(map(bool, (self.issuers, self.any, self.all)))

    def wrong(self, *, active: bool) -> str:
        """Return what is wrong with the policy as a whole, if anything."""
        if self.public and self.ways():
            return "is public, and says who may pass; keep one"
        if self.ways() > 1:
            return "must have one of issuers, any and all"
        if active and not self.public and not self.ways():
            return "is enabled, and has no issuers; name some, or others under any or all, or make it public"
        return ""


class GatewayPolicy(Policy):
    """Who may pass to which paths."""

    name: Name
    """How logs and counters call it."""
    enabled: bool = False
    """Whether it counts."""
    applies_to: Annotated[tuple[Prefix, ...], AfterValidator(_distinct)] = ()
    """Paths, with all that is below them; empty text is every path. The longest one counts."""
    hosts: Hosts = ()
    """Only for these hosts, `*.` and a domain included; empty means any."""
    methods: Methods = ()
    """Only for these methods; empty means all."""

    @model_validator(mode="after")
    def _whole(self) -> GatewayPolicy:
        if wrong := self.wrong(active=self.enabled):
            raise ValueError(wrong)
        if self.enabled and not self.applies_to:
            raise ValueError("is enabled, and has no applies_to; write [''] for every path")
        return self


class InlinePolicy(Policy, Section):
    """Who may pass to an upstream. It covers what its `route_prefix` covers, and every route that sends there."""

    enabled: bool = False
    """Whether it counts."""

    @model_validator(mode="after")
    def _whole(self) -> InlinePolicy:
        if wrong := self.wrong(active=self.enabled):
            raise ValueError(wrong)
        return self


class RoutePolicy(Policy, Section):
    """Who may use a route, whatever other policies say."""

    enabled: bool = True
    """Whether it counts; without it the policies of upstream and gateway do."""

    @model_validator(mode="after")
    def _whole(self) -> RoutePolicy:
        if wrong := self.wrong(active=self.enabled):
            raise ValueError(wrong)
        return self


# --- identities for upstreams ------------------------------------------------


class Forward(Group):
    """What the upstream is told. An empty name sends nothing."""

    subject_header: OutputHeader = "X-Auth-Subject"
    """Header for the subject."""
    issuer_header: OutputHeader = "X-Auth-Issuer"
    """Header for the issuer."""
    scopes_header: OutputHeader = "X-Auth-Scopes"
    """Header for the scopes, with spaces between them."""
    raw_jwt_header: OutputHeader = ""
    """Header for the token itself."""
    claims_to_headers: dict[str, OutputHeader] = Field(default_factory=dict)
    """Claim to header. Text, numbers and booleans are sent, lists and mappings are not."""
    strip_inbound_identity_headers: bool = True
    """Remove these headers from what clients send."""
    preserve_authorization: bool = True
    """Whether the upstream gets `Authorization` as well."""

    @model_validator(mode="after")
    def _different(self) -> Forward:
        names = [self.subject_header, self.issuer_header, self.scopes_header, self.raw_jwt_header]
        seen: set[str] = set()
        for name in [*names, *self.claims_to_headers.values()]:
            if name and name.lower() in seen:
                raise ValueError(f"has {name!r} for two things; the case of letters does not count")
            seen.add(name.lower())
        return self


class Auth(Section):
    """Who may pass, and who says so."""

    enabled: bool = False
    """Whether any policy counts."""
    debug_response_headers: bool = False
    """Tell the client in `X-Auth-*` headers what was decided."""
    hmac_cache_key_env: Variable = ""
    """The environment variable with the key under which introspected tokens are remembered; without it each process makes one."""
    issuers: dict[Name, Issuer] = Field(default_factory=dict)
    """Providers, by name."""
    api_keys: dict[Name, ApiKeys] = Field(default_factory=dict)
    """Lists of clients with a key, by name."""
    basic: dict[Name, Basic] = Field(default_factory=dict)
    """Lists of users with a password, by name."""
    certificates: dict[Name, Certificates] = Field(default_factory=dict)
    """Lists of clients with a certificate, by name."""
    forward_auth: dict[Name, ForwardAuth] = Field(default_factory=dict)
    """Services that are asked, by name."""
    policies: tuple[GatewayPolicy, ...] = ()
    """Who may pass, by path."""
    forward: Forward = Forward()
    """What upstreams are told."""

    @model_validator(mode="after")
    def _usable(self) -> Auth:
        ways = (self.issuers, self.api_keys, self.basic, self.certificates, self.forward_auth)
        if self.enabled and not any(ways):
            raise ValueError("is enabled, and has no issuers; nobody could be recognised")
        return self
