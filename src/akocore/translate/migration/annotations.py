"""What the annotations of an Ingress come to in an HTTPRoute: each has its verdict.

The meanings of ``nginx.ingress.kubernetes.io/`` are those of ingress-nginx's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Struct, field

from akocore.kube.objects import Ingress

__all__ = ["Canary", "Dialect", "Features", "Verdict", "Word", "captured", "read"]

Dialect = Literal["avi", "nginx"]
Word = Literal["supported", "ignored", "untranslatable", "note"]
NGINX: Final = "nginx.ingress.kubernetes.io/"
_CAPTURE: Final = re.compile(r"(?P<prefix>/[^()|$*\\]*|)(?P<end>\(/\|\$\))?\(\.\*\)")
_METHODS: Final = "GET, PUT, POST, DELETE, PATCH, OPTIONS"
_HEADERS: Final = (
    "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,"
    "Range,Authorization"
)


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of a part of an object."""

    object: str  # "Ingress/namespace/name"
    field: str
    verdict: Word
    text: str


class Canary(Struct, frozen=True):
    """Another backend for some requests of a path: of a header's value, or of ``weight`` %."""

    weight: int = 0
    header: str = ""
    value: str = ""
    cookie: str = ""


class Features(Struct):
    """What an Ingress asks for beside hosts and paths, in terms of HTTPRoute."""

    redirect_status: int = 302  # http → https
    redirect_tls: bool = True  # of hosts with TLS
    redirect_all: bool = False  # of hosts without TLS, too
    whole_redirect: dict[str, Any] | None = None
    root: str = ""
    regex: bool = False
    rewrite: str = ""
    host: str = ""
    cors: dict[str, Any] | None = None
    set_headers: dict[str, str] = field(default_factory=dict)
    mirror: dict[str, Any] | None = None
    auth: dict[str, Any] | None = None
    session: dict[str, Any] | None = None
    canary: Canary | None = None
    aliases: tuple[str, ...] = ()
    www: bool = False
    on_gateway: dict[str, str] = field(default_factory=dict)
    on_route: dict[str, str] = field(default_factory=dict)


class _Reader:
    """One Ingress's annotations while they are read."""

    def __init__(self, ingress: Ingress, dialect: Dialect) -> None:
        self.object = f"Ingress/{ingress.metadata.key}"
        self.namespace = ingress.metadata.namespace
        self.all = dict(ingress.metadata.annotations or {})
        self.out = Features(redirect_status=302 if dialect == "avi" else 308)
        self.verdicts: list[Verdict] = []

    def say(self, name: str, verdict: Word, text: str) -> None:
        self.verdicts.append(
            Verdict(
                object=self.object,
                field=f"metadata.annotations[{name}]",
                verdict=verdict,
                text=text,
            )
        )

    def nginx(self, name: str, default: str = "") -> str:
        return self.all.get(NGINX + name, default).strip()


def read(ingress: Ingress, dialect: Dialect) -> tuple[Features, list[Verdict]]:
    """Cost: the annotations."""
    at = _Reader(ingress, dialect)
    for name, value in sorted(at.all.items()):
        if name.startswith(NGINX):
            if dialect == "avi":
                at.say(name, "ignored", "It means nothing to class avi-lb, as before.")
                continue
            short = name.removeprefix(NGINX)
            known = _NGINX.get(short)
            if known is not None:
                verdict, text = known(at, value.strip())
                at.say(name, verdict, text)
            elif (why := _nothing(short)) is not None:
                at.say(name, *why)
            else:
                at.say(name, "untranslatable", "It is not known. Look up what it does.")
        elif name.startswith("cert-manager.io/"):
            at.out.on_gateway[name] = value
            at.say(name, "supported", "It goes to the Gateway, where cert-manager looks for it.")
        elif name.startswith("external-dns.alpha.kubernetes.io/"):
            at.out.on_route[name] = value
            at.say(name, "supported", "It goes to the HTTPRoute; a target belongs on the Gateway.")
        elif name == "kubernetes.io/ingress.class":
            at.say(name, "supported", "The Gateway's gatewayClassName says it.")
        elif name == "kubectl.kubernetes.io/last-applied-configuration":
            continue
        elif name in _AVI:
            at.say(name, *_AVI[name])
        else:
            at.say(name, "ignored", "No controller of ours reads it. Copy it if another one does.")
    return at.out, at.verdicts


_Said = tuple[Word, str]
_OUTPUT: Final[_Said] = (
    "ignored",
    "AKO wrote it to say where the host is; a Gateway's status does.",
)
_AVI: Final[dict[str, _Said]] = {
    "ako.vmware.com/host-fqdn-vs-uuid-map": _OUTPUT,
    "ako.vmware.com/controller-cluster-uuid": _OUTPUT,
    "ako.vmware.com/tenant-name": _OUTPUT,
    "passthrough.ako.vmware.com/enabled": (
        "untranslatable",
        (
            "akocore serves the Ingress without it. Write a TLS listener in mode Passthrough and a"
            " TLSRoute."
        ),
    ),
    "ako.vmware.com/enable-tls": (
        "untranslatable",
        "akocore serves the Ingress without it. Name a Secret in spec.tls.",
    ),
}


# ── ingress-nginx ───────────────────────────────────────────────────────────────────────────


def _true(value: str) -> bool:
    return value.lower() == "true"


def _tls_redirect(at: _Reader, value: str) -> _Said:
    at.out.redirect_tls = _true(value)
    how = "redirects http to https" if _true(value) else "serves http as well"
    return "supported", f"A host with TLS {how}."


def _force(at: _Reader, value: str) -> _Said:
    at.out.redirect_all = _true(value)
    if _true(value):
        return "supported", "http is redirected to https (RequestRedirect), TLS here or elsewhere."
    return "supported", "It is the default."


def _url(at: _Reader, value: str, status: int) -> _Said:
    url = urlsplit(value)
    if not url.scheme or not url.hostname or "$" in value:
        return "untranslatable", "It is no fixed URL. Write RequestRedirect filters by hand."
    redirect: dict[str, Any] = {"scheme": url.scheme, "hostname": url.hostname}
    if url.port:
        redirect["port"] = url.port
    redirect["path"] = {"type": "ReplaceFullPath", "replaceFullPath": url.path or "/"}
    redirect["statusCode"] = status
    at.out.whole_redirect = redirect
    return "supported", f"A RequestRedirect filter ({status}); a query of the request is kept."


def _permanent(at: _Reader, value: str) -> _Said:
    code = at.nginx("permanent-redirect-code", "301")
    return _url(at, value, int(code) if code in ("301", "308") else 301)


def _temporal(at: _Reader, value: str) -> _Said:
    code = at.nginx("temporal-redirect-code", "302")
    return _url(at, value, int(code) if code in ("302", "303", "307") else 302)


def _of(name: str) -> Callable[[_Reader, str], _Said]:
    def said(at: _Reader, _value: str) -> _Said:
        if NGINX + name in at.all:
            return "supported", f"It is part of {name}."
        return "ignored", f"It means nothing without {name}."

    return said


def _rewrite(at: _Reader, value: str) -> _Said:
    at.out.rewrite = value
    return "supported", "A URLRewrite filter, path by path; what can't be is told there."


def _root(at: _Reader, value: str) -> _Said:
    at.out.root = value
    return "supported", "A rule for / to the letter with a RequestRedirect filter (302)."


def _use_regex(at: _Reader, value: str) -> _Said:
    at.out.regex = _true(value)
    if not at.out.regex:
        return "supported", "It is the default."
    return (
        "supported",
        "Paths are RegularExpression matches, blind to case and open at their end.",
    )


def _cors(at: _Reader, value: str) -> _Said:
    if not _true(value):
        return "ignored", "CORS is off."

    def words(name: str, default: str = "") -> list[str]:
        return [one.strip() for one in at.nginx(name, default).split(",") if one.strip()]

    cors: dict[str, Any] = {
        "allowOrigins": words("cors-allow-origin", "*"),
        "allowMethods": words("cors-allow-methods", _METHODS),
        "allowHeaders": words("cors-allow-headers", _HEADERS),
        "maxAge": int(at.nginx("cors-max-age", "1728000")),
    }
    if exposed := words("cors-expose-headers"):
        cors["exposeHeaders"] = exposed
    if _true(at.nginx("cors-allow-credentials", "true")):
        cors["allowCredentials"] = True
    at.out.cors = cors
    return "supported", "A CORS filter; preflights are answered with 204."


def _upstream_host(at: _Reader, value: str) -> _Said:
    if "$" in value:
        return "untranslatable", "It has a variable of nginx. Write a host in a URLRewrite filter."
    at.out.host = value
    return "supported", "A URLRewrite filter sets the host."


def _prefix_header(at: _Reader, value: str) -> _Said:
    at.out.set_headers["X-Forwarded-Prefix"] = value
    return "supported", "A RequestHeaderModifier filter sets X-Forwarded-Prefix."


def _affinity(at: _Reader, value: str) -> _Said:
    if value != "cookie":
        return "untranslatable", "The only affinity is by cookie. Write sessionPersistence."
    age = at.nginx("session-cookie-max-age") or at.nginx("session-cookie-expires")
    session: dict[str, Any] = {
        "sessionName": at.nginx("session-cookie-name", "INGRESSCOOKIE"),
        "type": "Cookie",
    }
    if age.isdigit():
        session["absoluteTimeout"] = f"{age}s"
        session["cookieConfig"] = {"lifetimeType": "Permanent"}
    at.out.session = session
    return (
        "supported",
        "sessionPersistence of its rules (experimental channel); sessions begin anew.",
    )


def _service(url: str) -> tuple[str, str, int, str] | None:
    """(namespace, service, port, path) of a URL inside the cluster."""
    found = urlsplit(url)
    name, _, rest = (found.hostname or "").partition(".")
    namespace, _, rest = rest.partition(".")
    if found.scheme != "http" or not name or not namespace or "$" in url:
        return None
    if rest not in ("", "svc", "svc.cluster.local"):
        return None
    return namespace, name, found.port or 80, found.path


def _reference(at: _Reader, found: tuple[str, str, int, str]) -> dict[str, Any]:
    namespace, name, port, _ = found
    other = {} if namespace == at.namespace else {"namespace": namespace}
    return {"name": name, **other, "port": port}


def _auth(at: _Reader, value: str) -> _Said:
    found = _service(value)
    if found is None:
        return (
            "untranslatable",
            (
                "It is no plain http URL of a Service (http://NAME.NAMESPACE.svc/PATH). Put one in"
                " front and write an ExternalAuth filter."
            ),
        )
    http: dict[str, Any] = {"path": found[3]} if found[3].strip("/") else {}
    wanted = [one.strip() for one in at.nginx("auth-response-headers").split(",") if one.strip()]
    if wanted:
        http["allowedResponseHeaders"] = wanted
    http["allowedHeaders"] = ["Cookie"]
    at.out.auth = {"protocol": "HTTP", "backendRef": _reference(at, found), "http": http}
    return (
        "supported",
        (
            "An ExternalAuth filter (experimental channel). It is asked with the request's path"
            " behind its own, and shown Cookie and Authorization; nginx asks with its own alone."
        ),
    )


def _mirror(at: _Reader, value: str) -> _Said:
    found = _service(value.replace("$request_uri", "").rstrip("/"))
    if found is None:
        return "untranslatable", "It is no Service of the cluster. Put one in front of it."
    at.out.mirror = {"backendRef": _reference(at, found)}
    return "supported", "A RequestMirror filter."


def _canary(at: _Reader, value: str) -> _Said:
    if not _true(value):
        return "ignored", "It is off."
    weight = at.nginx("canary-weight", "0")
    total = at.nginx("canary-weight-total", "100")
    share = round(int(weight) * 100 / int(total)) if weight.isdigit() and total.isdigit() else 0
    at.out.canary = Canary(
        min(share, 100),
        at.nginx("canary-by-header"),
        at.nginx("canary-by-header-value"),
        at.nginx("canary-by-cookie"),
    )
    return "supported", "Its backend is a share, or a rule by header, of the route that it is for."


def _aliases(at: _Reader, value: str) -> _Said:
    names = tuple(one for one in re.split(r"[,\s]+", value) if one)
    if any(name.startswith("~") for name in names):
        return "untranslatable", "An expression is no host name. Write the names, or a wildcard."
    at.out.aliases = names
    return "supported", "They are further hostnames of the route."


def _www(at: _Reader, value: str) -> _Said:
    at.out.www = _true(value)
    return "supported", "A route for the other spelling of each host with a RequestRedirect filter."


def _protocol(at: _Reader, value: str) -> _Said:
    if value.upper() in ("HTTP", "AUTO_HTTP"):
        return "supported", "It is the default."
    if value.upper() == "GRPC":
        return (
            "untranslatable",
            "Set appProtocol: kubernetes.io/h2c at the Service's port, or write a GRPCRoute.",
        )
    if value.upper() in ("HTTPS", "GRPCS"):
        return (
            "untranslatable",
            (
                "Write a BackendTLSPolicy for the Service: hostname and authority of its"
                " certificate, which is checked from then on."
            ),
        )
    return "untranslatable", f"{value} is no protocol of a Gateway. Serve HTTP."


_NGINX: Final[dict[str, Callable[[_Reader, str], _Said]]] = {
    "ssl-redirect": _tls_redirect,
    "force-ssl-redirect": _force,
    "permanent-redirect": _permanent,
    "permanent-redirect-code": _of("permanent-redirect"),
    "temporal-redirect": _temporal,
    "temporal-redirect-code": _of("temporal-redirect"),
    "rewrite-target": _rewrite,
    "app-root": _root,
    "use-regex": _use_regex,
    "enable-cors": _cors,
    "cors-allow-origin": _of("enable-cors"),
    "cors-allow-methods": _of("enable-cors"),
    "cors-allow-headers": _of("enable-cors"),
    "cors-allow-credentials": _of("enable-cors"),
    "cors-expose-headers": _of("enable-cors"),
    "cors-max-age": _of("enable-cors"),
    "upstream-vhost": _upstream_host,
    "x-forwarded-prefix": _prefix_header,
    "affinity": _affinity,
    "affinity-mode": _of("affinity"),
    "affinity-canary-behavior": _of("affinity"),
    "session-cookie-name": _of("affinity"),
    "session-cookie-max-age": _of("affinity"),
    "session-cookie-expires": _of("affinity"),
    "session-cookie-path": _of("affinity"),
    "auth-url": _auth,
    "auth-response-headers": _of("auth-url"),
    "mirror-target": _mirror,
    "canary": _canary,
    "canary-weight": _of("canary"),
    "canary-weight-total": _of("canary"),
    "canary-by-header": _of("canary"),
    "canary-by-header-value": _of("canary"),
    "canary-by-cookie": _of("canary"),
    "server-alias": _aliases,
    "from-to-www-redirect": _www,
    "backend-protocol": _protocol,
}

_NOTHING: Final[tuple[tuple[str, _Said], ...]] = (
    (
        r"proxy-(read|send|connect)-timeout|proxy-next-upstream.*",
        (
            "ignored",
            (
                "Requests have no limit but 300 s without a byte; what no backend has seen is tried"
                " again. Write timeouts or retry into the rules for others."
            ),
        ),
    ),
    (
        (
            r"proxy-body-size|client-body-buffer-size|proxy-buffer.*|proxy-max-temp-file-size"
            r"|proxy-request-buffering|proxy-http-version|connection-proxy-header"
            r"|preserve-trailing-slash|http2-push-preload|enable-access-log|enable-rewrite-log"
            r"|enable-opentelemetry|opentelemetry-.*|load-balance|service-upstream|ssl-ciphers"
            r"|ssl-prefer-server-ciphers|proxy-ssl-.*|session-cookie-.*|mirror-.*|x-forwarded-.*"
        ),
        ("ignored", "It tunes nginx; answers are the same without it."),
    ),
    (
        r"limit-.*|global-rate-limit.*",
        ("untranslatable", "Gateways have no rate limits. Put one behind, or in front."),
    ),
    (
        r"(white|allow|deny)list-source-range",
        ("untranslatable", "HTTPRoutes know no client addresses. Use a NetworkPolicy or firewall."),
    ),
    (
        r"auth-(type|secret|realm|secret-type)",
        ("untranslatable", "Ask an authorizer: an ExternalAuth filter and a Service that checks."),
    ),
    (
        r"auth-tls-.*",
        ("untranslatable", "Write the authority into the Gateway's frontend TLS validation."),
    ),
    (
        r"auth-.*",
        ("untranslatable", "An ExternalAuth filter has nothing like it. The authorizer may do it."),
    ),
    (
        r"ssl-passthrough",
        ("untranslatable", "Write a TLS listener in mode Passthrough and a TLSRoute."),
    ),
    (
        (
            r"(configuration|server|stream|auth)-snippet|modsecurity.*|enable-modsecurity"
            r"|enable-owasp.*|owasp.*|custom-headers"
        ),
        ("untranslatable", "It is configuration of nginx itself. Say what it does with filters."),
    ),
    (
        r"custom-http-errors|default-backend|disable-proxy-intercept-errors",
        ("untranslatable", "Answers of backends go on as they are; let the backend answer."),
    ),
    (
        r"upstream-hash-by.*",
        (
            "untranslatable",
            "Write sessionPersistence, or sessionAffinity: ClientIP at the Service.",
        ),
    ),
    (
        r"(proxy-(cookie|redirect)-.*|satisfy|canary-.*|denylist.*)",
        ("untranslatable", "There is nothing like it. Let the backend do it."),
    ),
)


def _nothing(name: str) -> _Said | None:
    return next((said for text, said in _NOTHING if re.fullmatch(text, name)), None)


def captured(path: str, target: str) -> tuple[str, str] | None:
    """(prefix, what replaces it) of the custom ``/prefix(/|$)(.*)`` → ``/$2``, else None."""
    found = _CAPTURE.fullmatch(path)
    if found is None or not (found["end"] or found["prefix"].endswith("/")):
        return None
    last = "$2" if found["end"] else "$1"
    if target.count("$") != 1 or not target.endswith(f"/{last}"):
        return None
    return found["prefix"].rstrip("/"), target.removesuffix(last).rstrip("/") or "/"
