"""A rule of a Gateway API route → Envoy routes, in order of precedence.

CORS is made of routes, not of a filter: a preflight is answered by a route of its own, and
requests of an allowed origin have one that adds the headers.  So all of it is as the API has it
(Envoy's filter answers "*" to who comes with credentials), and a rule without it pays nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as route_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.stateful_session.v3 import stateful_session_pb2
from envoy.extensions.http.stateful_session.cookie.v3 import cookie_pb2
from envoy.extensions.http.stateful_session.header.v3 import header_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import duration_pb2
from msgspec import Struct

from akocore._fast.diff import fingerprint
from akocore.engines.envoy.gateway_cluster import (
    NOWHERE,
    all_but,
    gateway_cluster_name,
    other_headers,
)
from akocore.engines.envoy.resources import elsewhere, unseen_retry
from akocore.model_http import (
    Backend,
    Cors,
    ExternalAuth,
    HeaderEdit,
    HttpMatch,
    HttpRule,
    KeyMatch,
    Mirror,
    PathRewrite,
    Redirect,
    Retry,
    Session,
    TextMatch,
)

__all__ = ["AUTH", "SESSION", "At", "backends_of", "expressions", "routes"]

AUTH: Final = "akocore.auth"
SESSION: Final = "akocore.session"
"""Filters of every connection manager; without an entry of a route they do nothing."""

_AUTH_S: Final = 10.0
_MILLION: Final = 1_000_000
_STATUS: Final = {
    301: route_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: route_pb2.RedirectAction.FOUND,
    303: route_pb2.RedirectAction.SEE_OTHER,
    307: route_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: route_pb2.RedirectAction.PERMANENT_REDIRECT,
}
_PORTS: Final = {"http": 80, "https": 443}
_NO_EDIT: Final = HeaderEdit()
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]*")
_Headers = Iterable[tuple[str, str]]
if TYPE_CHECKING:
    from google.protobuf.internal.containers import (
        RepeatedCompositeFieldContainer,
        RepeatedScalarFieldContainer,
    )

    _Options = RepeatedCompositeFieldContainer[base_pb2.HeaderValueOption]
    _Names = RepeatedScalarFieldContainer[str]


class At(Struct, frozen=True, gc=False):
    """Where a rule is served.  ``host``: to the letter, "" when it is a wildcard or any."""

    host: str
    port: int
    tls: bool
    port_offset: int = 0
    idle_s: float = 300.0  # of the connection manager; a longer request timeout replaces it


def backends_of(rule: HttpRule) -> Iterator[Backend]:
    """Every cluster that a rule needs, some of them more than once."""
    if rule.answer:
        return
    if rule.auth is not None and rule.auth.to.backend is not None:
        yield _authorizer(rule.auth)
    if rule.redirect is not None:
        return
    for backend in (*rule.backends, *(mirror.to for mirror in rule.mirrors)):
        if backend.backend is not None:
            yield backend


def routes(rule: HttpRule, at: At) -> Iterator[route_pb2.Route]:
    if rule.cors is not None:
        yield from _preflight(rule, rule.cors)
        origin = _origin(rule.cors)
        for one in _plain(rule, at):
            one.match.headers.append(origin)
            _put(one.response_headers_to_add, _cors_headers(rule.cors))
            if "*" not in rule.cors.origins or rule.cors.credentials:
                _add(one.response_headers_to_add, [("vary", "Origin")])
            yield one
    yield from _plain(rule, at)


def expressions(rule: HttpRule) -> Iterator[tuple[str, bool]]:
    """Every regular expression of a rule, as often as a request may be tried against it.

    With each: whether it decides about the rule.  Else it is tried once, when that is decided, or
    is a list of headers that an authorizer is not shown.
    """
    match = rule.match
    origins = rule.cors is not None and "*" not in rule.cors.origins
    keys = match.query or any(one.text.kind == "regex" for one in match.headers)
    rewrites = rule.rewrite_path is not None or rule.redirect is not None
    if origins or keys or rewrites or match.path.kind == "regex" or rule.session is not None:
        for route in routes(rule, At("any.test", 80, tls=False)):
            for text in _tried(route.match):
                yield text, True
            for action in (route.route, route.redirect):
                if action.regex_rewrite.pattern.regex:
                    yield action.regex_rewrite.pattern.regex, False
    if rule.auth is not None and not rule.auth.grpc and not rule.answer:
        yield all_but(_authorizer(rule.auth).only_headers), False


def _tried(match: route_pb2.RouteMatch) -> Iterator[str]:
    texts = [one.string_match for one in match.headers]
    texts += [one.string_match for one in match.query_parameters]
    if match.safe_regex.regex:
        yield match.safe_regex.regex
    for text in texts:
        if text.safe_regex.regex:
            yield text.safe_regex.regex


def _plain(rule: HttpRule, at: At) -> Iterator[route_pb2.Route]:
    out = route_pb2.Route(name=rule.name or "rule")
    _match(out.match, rule.match)
    shares = [backend for backend in rule.backends if backend.weight > 0]
    single = rule.answer or rule.redirect is not None or not _edited(shares)
    if single:
        _edit(out.response_headers_to_add, out.response_headers_to_remove, rule.response)
    if rule.answer:
        out.direct_response.status = rule.answer
        yield out
        return
    if rule.auth is not None:
        _auth(out, rule.auth)
    if rule.redirect is not None:
        yield from _redirects(out, rule.redirect, rule.match.path, at)
        return
    if single:
        _edit(out.request_headers_to_add, out.request_headers_to_remove, rule.request)
    if rule.session is not None and rule.session.kind == "cookie" and len(shares) > 1:
        yield from _chosen(rule, rule.session, shares, at)
    _forward(out, rule, shares, at)
    yield out


# ── what it matches ─────────────────────────────────────────────────────────────────────────


def _match(out: route_pb2.RouteMatch, match: HttpMatch) -> None:
    path = match.path
    if path.kind == "exact":
        out.path = path.value
    elif path.kind == "regex":
        out.safe_regex.regex = path.value
    elif path.value:
        out.path_separated_prefix = path.value
    else:
        out.prefix = "/"
    if match.method:
        out.headers.add(name=":method").string_match.exact = match.method
    for header in match.headers:
        _text(out.headers.add(name=header.name).string_match, header)
    for query in match.query:
        matcher = out.query_parameters.add(name=query.name).string_match
        if query.text.kind == "exact" and not _UNRESERVED.fullmatch(query.text.value):
            matcher.safe_regex.regex = "".join(map(_either, query.text.value))
        else:
            _text(matcher, query)


def _either(char: str) -> str:
    """A character of a query's value, as it is or encoded: Envoy compares what was sent."""
    if _UNRESERVED.fullmatch(char):
        return re.escape(char)
    ways = [re.escape(char), "".join(f"%{byte:02X}" for byte in char.encode())]
    return f"(?:{'|'.join([*ways, ways[1].lower(), *([r'[+]'] if char == ' ' else [])])})"


def _text(out: string_pb2.StringMatcher, key: KeyMatch) -> None:
    if key.text.kind == "exact":
        out.exact = key.text.value
    elif key.text.kind == "prefix":
        out.prefix = key.text.value
    else:
        out.safe_regex.regex = key.text.value


# ── headers ─────────────────────────────────────────────────────────────────────────────────


def _put(out: _Options, headers: _Headers, *, literal: bool = False) -> None:
    _headers(out, headers, base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD, literal)


def _add(out: _Options, headers: _Headers, *, literal: bool = False) -> None:
    _headers(out, headers, base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD, literal)


def _headers(
    out: _Options,
    headers: _Headers,
    action: base_pb2.HeaderValueOption.HeaderAppendAction,
    literal: bool,
) -> None:
    """``literal``: a per cent sign in a value is one, not Envoy's command."""
    for name, value in headers:
        one = out.add(append_action=action)
        one.header.key = name
        one.header.value = _literal(value) if literal else value
        one.keep_empty_value = literal


def _literal(value: str) -> str:
    return value.replace("%", "%%")


def _edit(add: _Options, remove: _Names, edit: HeaderEdit) -> None:
    """All of an edit but the host, which is no header to Envoy."""
    if edit == _NO_EDIT:
        return
    _put(add, [h for h in edit.set if h[0].lower() != "host"], literal=True)
    _add(add, [h for h in edit.add if h[0].lower() != "host"], literal=True)
    remove.extend(name for name in edit.remove if name.lower() != "host")


def _host(edit: HeaderEdit) -> str:
    return next((value for name, value in edit.set if name.lower() == "host"), "")


# ── forwarding ──────────────────────────────────────────────────────────────────────────────


def _edited(shares: Iterable[Backend]) -> bool:
    """Whether a backend has edits of its own: then the rule's go with each backend, before them.

    Envoy would make those of the rule last.
    """
    return any(one.request != _NO_EDIT or one.response != _NO_EDIT for one in shares)


def _after(first: HeaderEdit, then: HeaderEdit) -> tuple[HeaderEdit, HeaderEdit]:
    """Both, to be made one after the other without what the second undoes."""
    gone = {name.lower() for name in then.remove}
    return HeaderEdit(
        tuple(one for one in first.set if one[0].lower() not in gone),
        tuple(one for one in first.add if one[0].lower() not in gone),
        first.remove,
    ), then


def _forward(out: route_pb2.Route, rule: HttpRule, shares: list[Backend], at: At) -> None:
    if not any(backend.backend is not None for backend in shares):
        out.direct_response.status = 503 if rule.grpc else 500
        return
    action = out.route
    action.cluster_not_found_response_code = (
        route_pb2.RouteAction.SERVICE_UNAVAILABLE
        if rule.grpc
        else route_pb2.RouteAction.INTERNAL_SERVER_ERROR
    )
    action.hash_policy.add().connection_properties.source_ip = True  # a Service's session affinity
    edited = _edited(shares)
    if len(shares) == 1 and not edited:
        action.cluster = gateway_cluster_name(shares[0])
    else:
        for backend in shares:
            _share(action.weighted_clusters, backend, rule, edited)
    if host := rule.rewrite_host or _host(rule.request):
        action.host_rewrite_literal = host
    if rule.rewrite_path is not None:
        _rewrite(action, rule.rewrite_path, rule.match.path)
    for mirror in rule.mirrors:
        _mirror(action, mirror)
    _patience(action, rule, at.idle_s)
    if rule.session is not None:
        _keep_session(out, rule.session)


def _share(out: route_pb2.WeightedCluster, backend: Backend, rule: HttpRule, edited: bool) -> None:
    one = out.clusters.add(name=gateway_cluster_name(backend))
    one.weight.value = backend.weight
    if edited:
        for edit in _after(rule.request, backend.request):
            _edit(one.request_headers_to_add, one.request_headers_to_remove, edit)
        for edit in _after(rule.response, backend.response):
            _edit(one.response_headers_to_add, one.response_headers_to_remove, edit)
    if host := _host(backend.request):
        one.host_rewrite_literal = host
    if rule.session is not None and rule.session.kind == "cookie" and len(rule.backends) > 1:
        until = f"; Max-Age={rule.session.lifetime_s:.0f}" if rule.session.lifetime_s else ""
        value = f"{rule.session.name}-backend={_mark(backend)}; Path=/; HttpOnly{until}"
        _add(one.response_headers_to_add, [("set-cookie", value)], literal=True)


def _mark(backend: Backend) -> str:
    return fingerprint(gateway_cluster_name(backend).encode()).hex()[:12]


def _chosen(
    rule: HttpRule, session: Session, shares: Iterable[Backend], at: At
) -> Iterator[route_pb2.Route]:
    """Routes of sessions that have a backend: a cookie more says which."""
    for backend in shares:
        if backend.backend is None:
            continue
        alone = msgspec.structs.replace(rule, backends=(backend,))
        for one in _plain(alone, at):
            cookie = one.match.headers.add(name="cookie").string_match
            own = re.escape(f"{session.name}-backend={_mark(backend)}")
            cookie.safe_regex.regex = rf"(?:.*;\s*)?{own}(?:\s*;.*)?"
            yield one


def _rewrite(
    action: route_pb2.RouteAction | route_pb2.RedirectAction, rewrite: PathRewrite, path: TextMatch
) -> None:
    """The path of a request anew; what matched as a prefix gives way to another, whole elements."""
    if rewrite.kind == "full" or path.kind != "prefix":
        if isinstance(action, route_pb2.RedirectAction):
            action.path_redirect = rewrite.value
        else:
            action.regex_rewrite.pattern.regex = "^/.*$"
            action.regex_rewrite.substitution = rewrite.value.replace("\\", "\\\\")
        return
    value = rewrite.value.rstrip("/")
    if not path.value:  # matched: the slash that every path begins with
        action.prefix_rewrite = f"{value}/"
    elif value:
        action.prefix_rewrite = value
    else:
        action.regex_rewrite.pattern.regex = f"^{re.escape(path.value)}/?"
        action.regex_rewrite.substitution = "/"


def _mirror(action: route_pb2.RouteAction, mirror: Mirror) -> None:
    if mirror.to.backend is None:
        return
    one = action.request_mirror_policies.add(cluster=gateway_cluster_name(mirror.to))
    one.disable_shadow_host_suffix_append = True
    share = one.runtime_fraction.default_value
    share.numerator = round(mirror.numerator * _MILLION / mirror.denominator)
    share.denominator = percent_pb2.FractionalPercent.MILLION


def _patience(action: route_pb2.RouteAction, rule: HttpRule, idle_s: float) -> None:
    action.timeout.CopyFrom(_duration(rule.request_timeout_s))
    longest = max(rule.request_timeout_s, rule.backend_timeout_s)
    if rule.unhurried:
        action.idle_timeout.SetInParent()
    elif longest > idle_s > 0:
        action.idle_timeout.CopyFrom(_duration(longest + 1))
    if rule.retry is None and not rule.backend_timeout_s:
        return  # as the host has it
    policy = action.retry_policy
    policy.CopyFrom(unseen_retry() if rule.retry is None else _retry(rule.retry))
    if rule.backend_timeout_s:
        policy.per_try_timeout.CopyFrom(_duration(rule.backend_timeout_s))


@lru_cache(1024)
def _retry(retry: Retry) -> route_pb2.RetryPolicy:
    out = route_pb2.RetryPolicy(
        retry_on="connect-failure,refused-stream,reset-before-request,reset"
    )
    if retry.codes:
        out.retry_on += ",retriable-status-codes"
        out.retriable_status_codes.extend(retry.codes)
    out.num_retries.value = retry.attempts
    if retry.backoff_s:
        out.retry_back_off.base_interval.CopyFrom(_duration(max(retry.backoff_s, 0.001)))
    elsewhere(out)
    return out


def _duration(seconds: float) -> duration_pb2.Duration:
    out = duration_pb2.Duration()
    out.FromMicroseconds(round(seconds * 1e6))
    return out


def _keep_session(out: route_pb2.Route, session: Session) -> None:
    config = stateful_session_pb2.StatefulSessionPerRoute()
    state = config.stateful_session.session_state
    state.name = f"envoy.http.stateful_session.{session.kind}"
    if session.kind == "header":
        state.typed_config.Pack(header_pb2.HeaderBasedSessionState(name=session.name))
    else:
        cookie = cookie_pb2.CookieBasedSessionState()
        cookie.cookie.name = session.name
        cookie.cookie.path = "/"
        cookie.cookie.ttl.CopyFrom(_duration(session.lifetime_s))
        state.typed_config.Pack(cookie)
    out.typed_per_filter_config[SESSION].Pack(config)


# ── external authorization ──────────────────────────────────────────────────────────────────


# Of a request, to its authorizer; the rest is no header to Envoy.
_ALWAYS: Final = ("authorization", "cdn-loop", "x-envoy-auth-partial-body")
_NEVER: Final = (
    *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te"),
    "cdn-loop",
    *("upgrade", "trailer", "date", "server", "content-type", "content-encoding"),
)  # of an authorizer's answer: they are about that answer


def _authorizer(auth: ExternalAuth) -> Backend:
    if auth.grpc:
        return msgspec.structs.replace(auth.to, protocol="h2c")
    only = sorted({*_ALWAYS, *(name.lower() for name in auth.request_headers)})
    return msgspec.structs.replace(auth.to, only_headers=tuple(only))


def _auth(out: route_pb2.Route, auth: ExternalAuth) -> None:
    name = gateway_cluster_name(_authorizer(auth)) if auth.to.backend is not None else NOWHERE
    config = ext_authz_pb2.ExtAuthzPerRoute()
    check = config.check_settings
    if auth.body_bytes:
        check.with_request_body.max_request_bytes = auth.body_bytes
        check.with_request_body.allow_partial_message = False
    else:
        check.disable_request_body_buffering = True
    if auth.grpc:
        check.grpc_service.envoy_grpc.cluster_name = name
        check.grpc_service.timeout.CopyFrom(_duration(_AUTH_S))
    else:
        http = check.http_service
        http.server_uri.uri = "http://authorizer"
        http.server_uri.cluster = name
        http.server_uri.timeout.CopyFrom(_duration(_AUTH_S))
        http.path_prefix = auth.path.rstrip("/")
        allowed = http.authorization_response.allowed_upstream_headers
        for header in auth.response_headers:
            allowed.patterns.add(exact=header.lower(), ignore_case=True)
        if not auth.response_headers:
            allowed.patterns.add().safe_regex.regex = other_headers(_NEVER)
    out.typed_per_filter_config[AUTH].Pack(config)


# ── redirects ───────────────────────────────────────────────────────────────────────────────


def _redirects(
    out: route_pb2.Route, redirect: Redirect, path: TextMatch, at: At
) -> Iterator[route_pb2.Route]:
    action = out.redirect
    action.response_code = _STATUS.get(redirect.status, route_pb2.RedirectAction.FOUND)
    action.scheme_redirect = redirect.scheme
    action.host_redirect = redirect.host
    if redirect.path is not None:
        _rewrite(action, redirect.path, path)
    scheme = redirect.scheme or ("https" if at.tls else "http")
    port = redirect.port
    if not port:
        port = (_PORTS[scheme] if redirect.scheme else at.port) + at.port_offset
    if port != _PORTS[scheme]:
        action.port_redirect = port
    elif not redirect.host and at.host:
        action.host_redirect = at.host
    elif not redirect.host:
        # A host that is not known can lose its port only to another one.
        ported = route_pb2.Route()
        ported.CopyFrom(out)
        ported.match.headers.add(name=":authority").string_match.safe_regex.regex = r".*:\d+"
        ported.redirect.port_redirect = port
        yield ported
    yield out


# ── CORS ────────────────────────────────────────────────────────────────────────────────────


def _preflight(rule: HttpRule, cors: Cors) -> Iterator[route_pb2.Route]:
    """Two answers to a preflight: to an allowed origin, and to any other."""
    out = route_pb2.Route(name="preflight")
    _match(out.match, msgspec.structs.replace(rule.match, method="OPTIONS"))
    wanted = out.match.headers.add(name="access-control-request-method")
    if rule.match.method:
        wanted.string_match.exact = rule.match.method
    else:
        wanted.present_match = True
    out.direct_response.status = 204
    other = route_pb2.Route()
    other.CopyFrom(out)
    other.match.headers.add(name="origin").present_match = True
    out.match.headers.append(_origin(cors))
    asked = "access-control-request"
    headers = [
        *_cors_headers(cors),
        ("access-control-allow-methods", _listed(cors.methods, cors, f"{asked}-method")),
        ("access-control-allow-headers", _listed(cors.headers, cors, f"{asked}-headers")),
        ("access-control-max-age", str(cors.max_age_s)),
        ("vary", "Origin"),
    ]
    _put(out.response_headers_to_add, [(name, value) for name, value in headers if value])
    yield out
    yield other


def _listed(values: tuple[str, ...], cors: Cors, asked: str) -> str:
    """What is allowed: "*" is what was asked for when there are credentials."""
    if "*" not in values:
        return _literal(", ".join(values))
    return f"%REQ({asked})%" if cors.credentials else "*"


def _cors_headers(cors: Cors) -> list[tuple[str, str]]:
    echo = cors.credentials or "*" not in cors.origins
    out = [("access-control-allow-origin", "%REQ(origin)%" if echo else "*")]
    if cors.credentials:
        out.append(("access-control-allow-credentials", "true"))
    if names := [n for n in cors.expose if n != "*" or not cors.credentials]:
        out.append(("access-control-expose-headers", _literal(", ".join(names))))
    return out


def _origin(cors: Cors) -> route_pb2.HeaderMatcher:
    out = route_pb2.HeaderMatcher(name="origin")
    if "*" in cors.origins:
        out.present_match = True
    else:
        out.string_match.safe_regex.regex = f"(?i)(?:{'|'.join(map(_origin_regex, cors.origins))})"
    return out


def _origin_regex(origin: str) -> str:
    """A port that is the scheme's own may be there or not."""
    scheme, _, host = origin.partition("://")
    own = f":{_PORTS.get(scheme.lower(), '')}"
    name = host.removesuffix(own)
    tail = f"(?:{own})?" if name != host or not re.search(r":\d+$", host) else ""
    return re.escape(f"{scheme}://{name}").replace(r"\*", r"[^/:]*") + tail
