"""What a rule of a Gateway API route does, in terms that any proxy has.

The seam between `akocore.translate` (objects → these) and `akocore.engines.envoy` (these → xDS).
The unit is the host of a listener: `HttpHost`, its rules in order of precedence, merged from all
routes that speak for it.  Seconds are floats; 0 is "no limit" where the API has one.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = [
    "Backend",
    "BackendTls",
    "Chain",
    "ChainTls",
    "ClientCertificates",
    "Cors",
    "ExternalAuth",
    "HeaderEdit",
    "HttpHost",
    "HttpMatch",
    "HttpRule",
    "KeyMatch",
    "Mirror",
    "PathRewrite",
    "Redirect",
    "Retry",
    "Session",
    "TextMatch",
]


class TextMatch(Struct, frozen=True, gc=False):
    """``prefix`` is of whole path elements and has no trailing slash ("" matches everything)."""

    kind: Literal["exact", "prefix", "regex"]
    value: str


class KeyMatch(Struct, frozen=True, gc=False):
    """A header (its name in lower case) or a query parameter (its name to the letter)."""

    name: str
    text: TextMatch


class HttpMatch(Struct, frozen=True, gc=False):
    """All of it must hold."""

    path: TextMatch
    method: str = ""
    headers: tuple[KeyMatch, ...] = ()
    query: tuple[KeyMatch, ...] = ()


class HeaderEdit(Struct, frozen=True, gc=False):
    """(name, value) to set in place of what is there and to add to it; names to remove."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


class PathRewrite(Struct, frozen=True, gc=False):
    """``full``: the whole path; ``prefix``: what the rule's prefix matched."""

    kind: Literal["full", "prefix"]
    value: str


class Redirect(Struct, frozen=True, gc=False):
    """ "" and 0: as the request has it; ``port`` 0 with a scheme: that scheme's own port."""

    status: int = 302
    scheme: str = ""
    host: str = ""
    port: int = 0
    path: PathRewrite | None = None


class BackendTls(Struct, frozen=True, gc=False):
    """How the connection to a backend is encrypted (BackendTLSPolicy).

    ``authorities``: PEM certificates; "" and ``system``: those of the machine.  ``names``: subject
    alternative names of which one must be there; (): ``hostname`` must.
    """

    hostname: str
    authorities: str = ""
    system: bool = False
    names: tuple[tuple[Literal["dns", "uri"], str], ...] = ()
    certificate: str = ""  # Secret that we show: "namespace/name"


class Backend(Struct, frozen=True, gc=False):
    """A share of a rule's requests.  ``backend`` None: those are answered with a 500.

    ``only_headers``: requests are sent with no others than these (lower case), but for what HTTP
    itself needs; (): with all.
    """

    backend: str | None  # "namespace/service/port", as `akocore.model.Pool.backend`
    weight: int = 1
    protocol: Literal["http1", "h2c"] = "http1"
    tls: BackendTls | None = None
    request: HeaderEdit = HeaderEdit()
    response: HeaderEdit = HeaderEdit()
    only_headers: tuple[str, ...] = ()


class Mirror(Struct, frozen=True, gc=False):
    """A copy of ``numerator`` of ``denominator`` requests; its answer is thrown away."""

    to: Backend
    numerator: int = 100
    denominator: int = 100


class Cors(Struct, frozen=True, gc=False):
    """As the Gateway API has it: "*" is any, in origins also within a name."""

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    credentials: bool = False
    max_age_s: int = 5


class ExternalAuth(Struct, frozen=True, gc=False):
    """Who is asked before a request goes on; ``body_bytes`` of it are shown to them.

    ``request_headers``: what they are shown beside host, method, path, Content-Length and
    Authorization; over gRPC it is always all.  ``response_headers``: what of their answer the
    backend gets; (): all of it.
    """

    to: Backend
    grpc: bool
    path: str = ""
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()
    body_bytes: int = 0


class Retry(Struct, frozen=True, gc=False):
    attempts: int
    codes: tuple[int, ...] = ()
    backoff_s: float = 0.0


class Session(Struct, frozen=True, gc=False):
    """Requests of one session go to one endpoint.  ``lifetime_s`` 0: until the browser ends."""

    kind: Literal["cookie", "header"]
    name: str
    lifetime_s: float = 0.0


class HttpRule(Struct, frozen=True, gc=False):
    """One match and what becomes of its requests.

    ``redirect`` goes before backends; without either and without ``backends`` it is a 500.
    ``answer``: a status given at once, whatever else is here.  ``grpc``: a rule of a GRPCRoute,
    whose missing backends are UNAVAILABLE.  ``unhurried``: a timeout of 0 was asked for in so many
    words, so its requests may be silent for as long as they like.
    """

    name: str
    match: HttpMatch
    backends: tuple[Backend, ...] = ()
    answer: int = 0
    redirect: Redirect | None = None
    request: HeaderEdit = HeaderEdit()
    response: HeaderEdit = HeaderEdit()
    rewrite_host: str = ""
    rewrite_path: PathRewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    auth: ExternalAuth | None = None
    request_timeout_s: float = 0.0
    backend_timeout_s: float = 0.0
    retry: Retry | None = None
    session: Session | None = None
    grpc: bool = False
    unhurried: bool = False


class HttpHost(Struct, frozen=True, gc=False):
    """What one host of a listener serves; who matches no rule gets a 404.

    ``host``: "a.example.test", "*.example.test" (any number of labels) or "" (any other).
    """

    host: str
    rules: tuple[HttpRule, ...] = ()


# ── ports of a Gateway ──────────────────────────────────────────────────────────────────────


class ClientCertificates(Struct, frozen=True, gc=False):
    """Whose certificates clients show.  ``authorities``: PEM.

    ``required`` False: who shows none, or one of anybody else, is let in as well.
    """

    authorities: str
    required: bool = True


class ChainTls(Struct, frozen=True, gc=False):
    """TLS ends here.  ``secrets``: "namespace/name" of certificates, of which SNI chooses one."""

    secrets: tuple[str, ...]
    clients: ClientCertificates | None = None


class Chain(Struct, frozen=True, gc=False):
    """What connections of one kind meet at a port; of those with TLS, by server name.

    ``name``: unique at the port, without a slash; the hosts of an HTTP chain belong to it.
    ``server_names``: "a.example.test", "*.example.test" (any number of labels); (): any other.
    ``tls`` None and ``passthrough``: TLS goes on to the backend; neither: there is no TLS.
    ``tcp`` None: HTTP.  Shares of ``tcp`` without a backend are refused.
    """

    name: str
    server_names: tuple[str, ...] = ()
    tls: ChainTls | None = None
    passthrough: bool = False
    tcp: tuple[Backend, ...] | None = None
