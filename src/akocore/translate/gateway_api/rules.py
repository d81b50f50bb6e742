"""Rules of HTTPRoutes and GRPCRoutes → `HttpRule`s, and all that speak for a host → `HttpHost`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from akocore.kube.gateway_objects import (
    GRPCRoute,
    GRPCRouteMatch,
    HTTPRoute,
    HTTPRouteMatch,
    HTTPRouteRule,
    HTTPRouteTimeouts,
    KeyValueMatch,
    L4RouteSpec,
    Route,
    TLSRoute,
)
from akocore.model import Refusal
from akocore.model_http import (
    Backend,
    HttpHost,
    HttpMatch,
    HttpRule,
    KeyMatch,
    Retry,
    Session,
    TextMatch,
)
from akocore.shown import quoted
from akocore.translate.gateway_api.backends import Context, Translation, backend, l4_backends
from akocore.translate.gateway_api.budget import Weight, problem, weigh
from akocore.translate.gateway_api.durations import seconds
from akocore.translate.gateway_api.filters import Filters, filters
from akocore.translate.gateway_api.found import Finding
from akocore.translate.gateway_api.hostnames import is_hostname
from akocore.translate.gateway_api.values import (
    TOKEN,
    name_problem,
    number_problem,
    path_problem,
    value_problem,
)

__all__ = ["RouteRules", "host", "refused", "rules_of", "with_certificate"]

Precedence = tuple[int, int, int, int, int]
"""Of two matches the lesser is tried first."""

_METHOD: Final = re.compile(r"[A-Z]{1,32}")
_ATTEMPTS: Final = 100
_QUERY_CHARS: Final = 256


class RouteRules(Struct, frozen=True, gc=False):
    """What a route asks for, wherever it attaches.

    ``rules``: of HTTP and gRPC, in the route's order; ``backends``: of TLS, TCP and UDP.
    ``refers``: "Service/ns/name" and "ReferenceGrant/ns" that decide about it.
    """

    rules: tuple[HttpRule, ...]
    order: tuple[Precedence, ...]  # of `rules`
    backends: tuple[Backend, ...]
    findings: tuple[Finding, ...]
    refers: frozenset[str]
    hostnames: tuple[str, ...]  # those that can be
    named: bool  # whether it names any at all: without a good one it is nobody's then
    none: bool  # not one of its rules can be served
    weights: Mapping[int, Weight] = MappingProxyType({})  # of those with regular expressions


def refused(refusal: Refusal) -> RouteRules:
    """The rules of a route of which nothing can be served."""
    found = (Finding("PartiallyInvalid", refusal),)
    return RouteRules((), (), (), found, frozenset(), (), named=True, none=True)


def rules_of(route: Route, context: Context) -> RouteRules:
    """The rules of one route.  Cost: these."""
    meta = route.metadata
    object_ = f"{route.KIND}/{meta.key}"
    at = Translation(route.KIND, meta.namespace, object_, context, [], set())
    spec = route.spec  # type: ignore[attr-defined]
    hostnames = spec.hostnames if isinstance(route, HTTPRoute | GRPCRoute | TLSRoute) else ()
    for i, one in enumerate(hostnames):
        if not is_hostname(one):
            remedy = f"{quoted(one)} is no DNS name. Write one, with *. only at the start."
            at.no("Hostnames", f"spec.hostnames[{i}]", "UnsupportedValue", remedy)
    good = tuple(one for one in hostnames if is_hostname(one))
    if spec.use_default_gateways not in ("", "None"):
        remedy = "There are no default Gateways here. Name the Gateway in parentRefs."
        at.warn("spec.useDefaultGateways", "UnsupportedValue", remedy)
    if isinstance(spec, L4RouteSpec):
        return RouteRules(
            (),
            (),
            _l4(at, spec),
            tuple(at.findings),
            frozenset(at.refers),
            good,
            bool(hostnames),
            False,
        )
    out: list[HttpRule] = []
    order: list[Precedence] = []
    dropped: list[str] = []
    weights: dict[int, Weight] = {}
    for i in range(len(spec.rules)):
        before = len(at.findings)
        made = _rule(at, route, i)
        if len(out) + len(made) > context.limits.paths:
            remedy = (
                f"A route has {context.limits.paths} matches at most. Make another of the rest."
            )
            at.no("PartiallyInvalid", f"spec.rules[{i}].matches", "TooLarge", remedy)
            made = []
        if (weight := _weigh(at, made, f"spec.rules[{i}]")).size:
            weights[i] = weight
        if any(one.reason == "TooLarge" for one in at.findings[before:]):
            made = []
        out += made
        order += _order(route, i, made)
        if any(one.type == "PartiallyInvalid" for one in at.findings[before:]):
            dropped.append(f"spec.rules[{i}]")
    return RouteRules(
        tuple(out),
        tuple(order),
        (),
        tuple(at.findings),
        frozenset(at.refers),
        good,
        bool(hostnames),
        bool(dropped) and len(dropped) == len(spec.rules),
        weights,
    )


def _l4(at: Translation, spec: L4RouteSpec) -> tuple[Backend, ...]:
    for i in range(1, len(spec.rules)):
        remedy = "Its connections can't be told apart: the first rule has them all. Take it out."
        at.warn(f"spec.rules[{i}]", "UnsupportedValue", remedy)
    if not spec.rules:
        return ()
    protocol = "UDP" if at.kind == "UDPRoute" else "TCP"
    refs = spec.rules[0].backend_refs
    return l4_backends(at, refs, "spec.rules[0].backendRefs", protocol)


# ── one rule ────────────────────────────────────────────────────────────────────────────────


def _rule(at: Translation, route: Route, i: int) -> list[HttpRule]:
    """One `HttpRule` a match.  A match that can't be takes its whole rule with it."""
    assert isinstance(route, HTTPRoute | GRPCRoute)
    field = f"spec.rules[{i}]"
    spec = route.spec.rules[i]
    before = len(at.findings)
    matches: list[HttpMatch] = []
    for m, one in enumerate(spec.matches):
        if isinstance(one, GRPCRouteMatch):
            matches.append(_grpc_match(at, one, f"{field}.matches[{m}]"))
        elif isinstance(one, HTTPRouteMatch):
            matches.append(_http_match(at, one, f"{field}.matches[{m}]"))
    if any(one.type == "PartiallyInvalid" for one in at.findings[before:]):
        return []
    if not matches:
        matches = [HttpMatch(TextMatch("prefix", ""))]
    done = filters(at, spec.filters, f"{field}.filters")
    own = HTTPRouteRule(
        timeouts=spec.timeouts if isinstance(spec, HTTPRouteRule) else None,
        retry=spec.retry if isinstance(spec, HTTPRouteRule) else None,
    )
    request_s, backend_s = _timeouts(at, own, field)
    shares = []
    for b, ref in enumerate(spec.backend_refs):
        here = f"{field}.backendRefs[{b}]"
        mine = filters(at, ref.filters, f"{here}.filters")
        others = mine.redirect or mine.rewrite_host or mine.rewrite_path or mine.mirrors
        if others or mine.cors or mine.auth:
            remedy = "Of a backend just headers can be changed. Move the filter to the rule."
            at.no("PartiallyInvalid", f"{here}.filters", "UnsupportedValue", remedy)
            mine.bad = True
        share = backend(at, ref, here, mine.request, mine.response)
        if mine.bad:
            share = Backend(None, share.weight)
        if share.weight:
            shares.append(share)
    first = HttpRule(
        name=f"{route.metadata.key}/{i}",
        match=matches[0],
        backends=tuple(shares),
        answer=500 if done.bad or (not shares and done.redirect is None) else 0,
        redirect=done.redirect,
        request=done.request,
        response=done.response,
        rewrite_host=done.rewrite_host,
        rewrite_path=done.rewrite_path,
        mirrors=done.mirrors,
        cors=done.cors,
        auth=done.auth,
        request_timeout_s=request_s,
        unhurried=_unhurried(own.timeouts),
        backend_timeout_s=backend_s,
        retry=_retry(at, own, field),
        session=_session(at, route, i, field),
        grpc=isinstance(route, GRPCRoute),
    )
    _check_prefixes(at, done, matches, field)
    if any(one.type == "PartiallyInvalid" for one in at.findings[before:]):
        first = msgspec.structs.replace(first, answer=500)
    if len(matches) == 1:
        return [first]
    return [
        msgspec.structs.replace(first, match=match, name=f"{first.name}/{m}")
        for m, match in enumerate(matches)
    ]


def _weigh(at: Translation, made: Iterable[HttpRule], field: str) -> Weight:
    """What the regular expressions of a rule weigh, with those that the engine's side adds."""
    context = at.context
    out = Weight()
    for rule in made:
        weight, wrong = weigh(context.expressions(rule), context.limits, context.largest)
        out += weight
        if wrong:
            at.no("PartiallyInvalid", field, "TooLarge", wrong)
            break
    return out


def _check_prefixes(
    at: Translation, done: Filters, matches: Iterable[HttpMatch], field: str
) -> None:
    path = done.redirect.path if done.redirect is not None else done.rewrite_path
    if path is None or path.kind != "prefix":
        return
    if any(match.path.kind != "prefix" for match in matches):
        remedy = "ReplacePrefixMatch needs matches of type PathPrefix. Write ReplaceFullPath."
        at.no("PartiallyInvalid", f"{field}.filters", "UnsupportedValue", remedy)


def _regex(at: Translation, text: str, field: str) -> None:
    """Envoy's own engine is asked; it has neither look-around nor back-references."""
    if not text:
        at.no("PartiallyInvalid", field, "UnsupportedValue", "It is empty. Write an expression.")
        return
    limits = at.context.limits
    if not at.spent.fits(limits):
        remedy = "The regular expressions before it have used up what a host may have. Write fewer."
        at.no("PartiallyInvalid", field, "TooLarge", remedy)
        return
    weight, wrong = problem(text, limits)
    at.spent += weight
    if wrong:
        at.no("PartiallyInvalid", field, "UnsupportedValue", wrong)


def _path(at: Translation, type_: str, value: str, field: str) -> TextMatch:
    if type_ == "RegularExpression":
        _regex(at, value, f"{field}.value")
        return TextMatch("regex", value)
    if type_ not in ("Exact", "PathPrefix"):
        remedy = f"{quoted(type_)} is unknown. Write Exact, PathPrefix or RegularExpression."
        at.no("PartiallyInvalid", f"{field}.type", "UnsupportedValue", remedy)
    elif (
        not value.startswith("/")
        or not value.isprintable()
        or " " in value
        or "?" in value
        or "#" in value
        or "//" in value
    ):
        remedy = (
            f"{quoted(value)} is no path. Write one that starts with a slash, without ?, # and //."
        )
        at.no("PartiallyInvalid", f"{field}.value", "UnsupportedValue", remedy)
    if type_ == "Exact":
        return TextMatch("exact", value)
    return TextMatch("prefix", value.rstrip("/"))


def _keys(
    at: Translation, all_: Iterable[KeyValueMatch], field: str, *, headers: bool
) -> tuple[KeyMatch, ...]:
    """Of several of one name the first counts."""
    out: dict[str, KeyMatch] = {}
    for i, one in enumerate(all_):
        name = one.name.lower() if headers else one.name
        if name in out:
            continue
        if headers and (wrong := name_problem(one.name)):
            at.no("PartiallyInvalid", f"{field}[{i}].name", "UnsupportedValue", wrong)
        elif not headers and (not name or not name.isprintable() or len(name) > _QUERY_CHARS):
            remedy = f"A query parameter has a name of 1 to {_QUERY_CHARS} printable characters."
            at.no("PartiallyInvalid", f"{field}[{i}].name", "UnsupportedValue", remedy)
        elif wrong := value_problem(one.name[:40], one.value):
            at.no("PartiallyInvalid", f"{field}[{i}].value", "UnsupportedValue", wrong)
        if one.type == "RegularExpression":
            _regex(at, one.value, f"{field}[{i}].value")
        elif one.type != "Exact":
            remedy = f"{quoted(one.type)} is unknown. Write Exact or RegularExpression."
            at.no("PartiallyInvalid", f"{field}[{i}].type", "UnsupportedValue", remedy)
        kind = "regex" if one.type == "RegularExpression" else "exact"
        out[name] = KeyMatch(name, TextMatch(kind, one.value))  # type: ignore[arg-type]
    return tuple(out.values())


def _http_match(at: Translation, match: HTTPRouteMatch, field: str) -> HttpMatch:
    if match.method and not _METHOD.fullmatch(match.method):
        remedy = f"{quoted(match.method)} is no method. Write it in upper case, as GET."
        at.no("PartiallyInvalid", f"{field}.method", "UnsupportedValue", remedy)
    return HttpMatch(
        _path(at, match.path.type, match.path.value, f"{field}.path"),
        match.method,
        _keys(at, match.headers, f"{field}.headers", headers=True),
        _keys(at, match.query_params, f"{field}.queryParams", headers=False),
    )


def _grpc_match(at: Translation, match: GRPCRouteMatch, field: str) -> HttpMatch:
    headers = _keys(at, match.headers, f"{field}.headers", headers=True)
    method = match.method
    path = TextMatch("prefix", "")
    if method is not None and method.type == "RegularExpression":
        service, name = method.service or "[^/]+", method.method or "[^/]+"
        path = TextMatch("regex", f"/(?:{service})/(?:{name})")
        _regex(at, path.value, f"{field}.method")
    elif method is not None and method.type != "Exact":
        remedy = f"{quoted(method.type)} is unknown. Write Exact or RegularExpression."
        at.no("PartiallyInvalid", f"{field}.method.type", "UnsupportedValue", remedy)
    elif method is not None and method.service and method.method:
        path = TextMatch("exact", f"/{method.service}/{method.method}")
    elif method is not None and method.service:
        path = TextMatch("prefix", f"/{method.service}")
    elif method is not None and method.method:
        path = TextMatch("regex", f"/[^/]+/{re.escape(method.method)}")
    if path.kind != "regex" and (wrong := path_problem(path.value or "/")):
        at.no("PartiallyInvalid", f"{field}.method", "UnsupportedValue", wrong)
    return HttpMatch(path, headers=headers)


def _seconds(at: Translation, text: str | None, field: str) -> float:
    if text is None:
        return 0.0
    found = seconds(text)
    if found is None:
        remedy = f"{quoted(text)} is no duration. Write it as 10s, 500ms or 1m30s."
        at.no("PartiallyInvalid", field, "UnsupportedValue", remedy)
        return 0.0
    return found


def _timeouts(at: Translation, rule: HTTPRouteRule, field: str) -> tuple[float, float]:
    """(request, one attempt at a backend), 0: no limit."""
    spec = rule.timeouts
    if spec is None:
        return 0.0, 0.0
    request = _seconds(at, spec.request, f"{field}.timeouts.request")
    attempt = _seconds(at, spec.backend_request, f"{field}.timeouts.backendRequest")
    if request and attempt > request:
        remedy = f"It can't be longer than the whole request, {spec.request}."
        at.no("PartiallyInvalid", f"{field}.timeouts.backendRequest", "UnsupportedValue", remedy)
    return request, attempt


def _unhurried(spec: HTTPRouteTimeouts | None) -> bool:
    """Whether what they say, not just leave out, is 0."""
    said = [] if spec is None else [one for one in (spec.request, spec.backend_request) if one]
    return bool(said) and all(seconds(one) == 0 for one in said)


def _retry(at: Translation, rule: HTTPRouteRule, field: str) -> Retry | None:
    spec = rule.retry
    if spec is None:
        return None
    backoff = _seconds(at, spec.backoff, f"{field}.retry.backoff")
    attempts = 1 if spec.attempts is None else spec.attempts
    here = f"{field}.retry"
    if wrong := number_problem(attempts, 0, _ATTEMPTS):
        at.no("PartiallyInvalid", f"{here}.attempts", "UnsupportedValue", wrong)
    for i, code in enumerate(spec.codes):
        if wrong := number_problem(code, 100, 599):
            at.no("PartiallyInvalid", f"{here}.codes[{i}]", "UnsupportedValue", wrong)
    return Retry(attempts, spec.codes, backoff)


def _session(at: Translation, route: HTTPRoute | GRPCRoute, i: int, field: str) -> Session | None:
    spec = route.spec.rules[i].session_persistence
    if spec is None:
        return None
    here = f"{field}.sessionPersistence"
    if spec.idle_timeout is not None:
        remedy = "Sessions have no idle timeout here: they are kept without. Take it out."
        at.warn(f"{here}.idleTimeout", "UnsupportedValue", remedy)
    absolute = _seconds(at, spec.absolute_timeout, f"{here}.absoluteTimeout")
    if spec.type not in ("Cookie", "Header"):
        remedy = f"{quoted(spec.type)} is unknown. Write Cookie or Header."
        at.no("PartiallyInvalid", f"{here}.type", "UnsupportedValue", remedy)
    lasting = spec.cookie_config is not None and spec.cookie_config.lifetime_type == "Permanent"
    if lasting and not absolute:
        remedy = "A permanent cookie needs absoluteTimeout."
        at.no("PartiallyInvalid", here, "UnsupportedValue", remedy)
    if spec.session_name and not TOKEN.fullmatch(spec.session_name):
        remedy = f"{quoted(spec.session_name)!r} is no name of a cookie or header."
        at.no("PartiallyInvalid", f"{here}.sessionName", "UnsupportedValue", remedy)
        return None
    if spec.type == "Header":
        return Session("header", spec.session_name.lower() or "x-session", absolute)
    name = spec.session_name or f"session-{route.metadata.name}-{i}"
    return Session("cookie", name, absolute if lasting else 0.0)


# ── hosts ───────────────────────────────────────────────────────────────────────────────────


def _order(route: Route, i: int, made: list[HttpRule]) -> list[Precedence]:
    """The more a match says, the earlier it is tried.

    Regular expressions of paths come after exact ones and before prefixes: the API leaves it open.
    """
    if isinstance(route, GRPCRoute):
        methods = [match.method for match in route.spec.rules[i].matches] or [None]
        lengths = [(len(m.service), len(m.method)) if m is not None else (0, 0) for m in methods]
        return [
            (0, -service, -method, -len(rule.match.headers), 0)
            for rule, (service, method) in zip(made, lengths, strict=False)
        ]
    kinds = {"exact": 0, "regex": 1, "prefix": 2}
    return [
        (
            kinds[match.path.kind],
            -len(match.path.value),
            0 if match.method else 1,
            -len(match.headers),
            -len(match.query),
        )
        for match in (rule.match for rule in made)
    ]


def host(name: str, routes: Iterable[RouteRules]) -> HttpHost:
    """One host of a listener from all routes that speak for it, oldest first.

    Cost: their rules.
    """
    found = [one for route in routes for one in zip(route.order, route.rules, strict=True)]
    found.sort(key=lambda one: one[0])  # stable: among equals the oldest route's, in its own order
    return HttpHost(name, tuple(rule for _, rule in found))


def with_certificate(model: HttpHost, secret: str) -> HttpHost:
    """The same; backends with TLS are shown the certificate of a Secret "namespace/name"."""
    replace = msgspec.structs.replace

    def shown(one: Backend) -> Backend:
        return one if one.tls is None else replace(one, tls=replace(one.tls, certificate=secret))

    return HttpHost(
        model.host,
        tuple(
            replace(
                rule,
                backends=tuple(map(shown, rule.backends)),
                mirrors=tuple(replace(one, to=shown(one.to)) for one in rule.mirrors),
                auth=replace(rule.auth, to=shown(rule.auth.to)) if rule.auth is not None else None,
            )
            for rule in model.rules
        ),
    )
