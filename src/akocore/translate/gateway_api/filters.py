"""Filters of HTTPRoutes and GRPCRoutes → what a rule does to its requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from akocore.kube.gateway_objects import (
    HTTPExternalAuthFilter,
    HTTPHeaderFilter,
    HTTPPathModifier,
    HTTPRouteFilter,
)
from akocore.model_http import (
    Cors,
    ExternalAuth,
    HeaderEdit,
    Mirror,
    PathRewrite,
    Redirect,
)
from akocore.shown import quoted
from akocore.translate.gateway_api.backends import Translation, backend
from akocore.translate.gateway_api.hostnames import is_hostname
from akocore.translate.gateway_api.values import (
    MAX_HEADER_BYTES,
    escaped_bytes,
    name_problem,
    number_problem,
    path_problem,
    removal_problem,
    value_problem,
)

__all__ = ["Filters", "filters"]

_BODY_BYTES: Final = 65_535  # as the Gateway API's own type has it
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_METHOD: Final = re.compile(r"[A-Z]{1,32}|\*")
_ORIGIN: Final = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9*._:\[\]-]{1,260}")
_STATUS: Final = (301, 302, 303, 307, 308)


class Filters(Struct):
    """``bad``: a filter can't be applied, so its requests must not go on, and none is applied."""

    request: HeaderEdit = HeaderEdit()
    response: HeaderEdit = HeaderEdit()
    redirect: Redirect | None = None
    rewrite_host: str = ""
    rewrite_path: PathRewrite | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    auth: ExternalAuth | None = None
    bad: bool = False


_No = Callable[[str, str, str], None]  # field below the filter, reason, remedy


def filters(at: Translation, all_: Iterable[HTTPRouteFilter], field: str) -> Filters:
    """What a rule's (or a backend's) filters come to.  Cost: these."""
    out = Filters()
    seen: set[str] = set()
    for i, one in enumerate(all_):
        here = f"{field}[{i}]"

        def no(part: str, reason: str, remedy: str, here: str = here) -> None:
            out.bad = True
            at.no("PartiallyInvalid", f"{here}.{part}", reason, remedy)

        apply = _APPLY.get(one.type)
        grpc = at.kind == "GRPCRoute" and one.type not in _GRPC
        if apply is None or grpc:
            what = f"{quoted(one.type)} is not served"
            if one.extension_ref is not None:
                ref = one.extension_ref
                what = f"{quoted(ref.kind)} of group {quoted(ref.group)} is not known"
            no("type", "UnsupportedValue", f"{what}: its requests get a 500. Take it out.")
        elif one.type in seen and one.type != "RequestMirror":
            no("type", "IncompatibleFilters", f"{quoted(one.type)} may be there once. Take it out.")
        else:
            apply(at, one, here, out, no)
        seen.add(one.type)
    if out.redirect is not None and (out.rewrite_host or out.rewrite_path is not None):
        out.bad = True
        remedy = "RequestRedirect and URLRewrite exclude each other. Take one out."
        at.no("PartiallyInvalid", field, "IncompatibleFilters", remedy)
    return Filters(bad=True) if out.bad else out


# ── one filter ──────────────────────────────────────────────────────────────────────────────


def _edit(spec: HTTPHeaderFilter | None, part: str, no: _No) -> HeaderEdit:
    if spec is None:
        no(part, "UnsupportedValue", f"Add {part}.")
        return HeaderEdit()
    pairs: list[tuple[tuple[str, str], ...]] = []
    for name, headers in (("set", spec.set), ("add", spec.add)):
        kept: dict[str, tuple[str, str]] = {}
        for i, one in enumerate(headers):
            here = f"{part}.{name}[{i}]"
            if problem := name_problem(one.name, changes=True):
                no(f"{here}.name", "UnsupportedValue", problem)
            elif problem := value_problem(one.name, one.value):
                no(f"{here}.value", "UnsupportedValue", problem)
            elif one.name.lower() == "host" and not _AUTHORITY.fullmatch(one.value):
                remedy = "A host is a name or an address, perhaps with a port. Write one."
                no(f"{here}.value", "UnsupportedValue", remedy)
            else:
                kept.setdefault(one.name.lower(), (one.name, one.value))
        pairs.append(tuple(kept.values()))
    removed: dict[str, None] = {}
    for i, gone in enumerate(spec.remove):
        if problem := removal_problem(gone):
            no(f"{part}.remove[{i}]", "UnsupportedValue", problem)
        else:
            removed[gone.lower()] = None
    return HeaderEdit(pairs[0], pairs[1], tuple(removed))


def _request(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    out.request = _edit(one.request_header_modifier, "requestHeaderModifier", no)


def _response(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    out.response = _edit(one.response_header_modifier, "responseHeaderModifier", no)


def _path(spec: HTTPPathModifier | None, part: str, no: _No) -> PathRewrite | None:
    if spec is None:
        return None
    full, prefix = spec.replace_full_path, spec.replace_prefix_match
    for name, text in (("replaceFullPath", full), ("replacePrefixMatch", prefix)):
        if text and (problem := path_problem(text)):
            no(f"{part}.path.{name}", "UnsupportedValue", problem)
            return None
    if spec.type == "ReplaceFullPath" and full is not None:
        return PathRewrite("full", full or "/")  # every path begins with a slash
    if spec.type == "ReplacePrefixMatch" and prefix is not None:
        return PathRewrite("prefix", prefix)
    remedy = "Write ReplaceFullPath or ReplacePrefixMatch, and its field."
    no(f"{part}.path.type", "UnsupportedValue", remedy)
    return None


def _redirect(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    spec = one.request_redirect
    if spec is None:
        no("requestRedirect", "UnsupportedValue", "Add requestRedirect.")
        return
    if spec.status_code not in _STATUS:
        remedy = f"{spec.status_code} is no redirect. Write 301, 302, 303, 307 or 308."
        no("requestRedirect.statusCode", "UnsupportedValue", remedy)
    if spec.scheme not in ("", "http", "https"):
        remedy = f"{quoted(spec.scheme)} is unknown. Write http or https."
        no("requestRedirect.scheme", "UnsupportedValue", remedy)
    if spec.hostname and not is_hostname(spec.hostname):
        no(
            "requestRedirect.hostname",
            "UnsupportedValue",
            f"{quoted(spec.hostname)!r} is no DNS name.",
        )
    if spec.port and (problem := number_problem(spec.port, 1, 65_535)):
        no("requestRedirect.port", "UnsupportedValue", problem)
    path = _path(spec.path, "requestRedirect", no)
    out.redirect = Redirect(spec.status_code, spec.scheme, spec.hostname, spec.port, path)


def _rewrite(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    spec = one.url_rewrite
    if spec is None:
        no("urlRewrite", "UnsupportedValue", "Add urlRewrite.")
        return
    if spec.hostname and not is_hostname(spec.hostname):
        no("urlRewrite.hostname", "UnsupportedValue", f"{quoted(spec.hostname)!r} is no DNS name.")
    out.rewrite_host = spec.hostname
    out.rewrite_path = _path(spec.path, "urlRewrite", no)


def _mirror(at: Translation, one: HTTPRouteFilter, field: str, out: Filters, no: _No) -> None:
    spec = one.request_mirror
    if spec is None:
        no("requestMirror", "UnsupportedValue", "Add requestMirror.")
        return
    to = backend(at, spec.backend_ref, f"{field}.requestMirror.backendRef")
    numerator, denominator = 100, 100
    if spec.fraction is not None:
        numerator, denominator = spec.fraction.numerator, spec.fraction.denominator
    elif spec.percent is not None:
        numerator = spec.percent
    if denominator < 1 or not 0 <= numerator <= denominator:
        remedy = "Write a share between none and all."
        no("requestMirror.fraction", "UnsupportedValue", remedy)
    elif to.backend is not None:
        out.mirrors = (*out.mirrors, Mirror(to, numerator, denominator))


def _cors(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    spec = one.cors
    if spec is None:
        no("cors", "UnsupportedValue", "Add cors.")
        return
    lists = (
        ("allowOrigins", spec.allow_origins, _ORIGIN),
        ("allowMethods", spec.allow_methods, _METHOD),
        ("allowHeaders", spec.allow_headers, None),
        ("exposeHeaders", spec.expose_headers, None),
    )
    for part, values, form in lists:
        for i, value in enumerate(values):
            problem = name_problem(value) if form is None else ""
            if form is not None and not form.fullmatch(value):
                problem = f"{value[:40]!r} can't be one. Take it out."
            if problem:
                no(f"cors.{part}[{i}]", "UnsupportedValue", problem)
        if escaped_bytes(", ".join(values)) > MAX_HEADER_BYTES and part != "allowOrigins":
            remedy = f"Together they are longer than {MAX_HEADER_BYTES} bytes. Name fewer."
            no(f"cors.{part}", "UnsupportedValue", remedy)
    if problem := number_problem(spec.max_age, 0, 2**31 - 1):
        no("cors.maxAge", "UnsupportedValue", problem)
    out.cors = Cors(
        spec.allow_origins,
        spec.allow_methods,
        spec.allow_headers,
        spec.expose_headers,
        spec.allow_credentials,
        spec.max_age,
    )


def _check_auth(spec: HTTPExternalAuthFilter, no: _No) -> None:
    http, grpc, body = spec.http, spec.grpc, spec.forward_body
    if http is not None and http.path and (problem := path_problem(http.path)):
        no("externalAuth.http.path", "UnsupportedValue", problem)
    names = {
        "http.allowedHeaders": http.allowed_headers if http is not None else (),
        "http.allowedResponseHeaders": http.allowed_response_headers if http is not None else (),
        "grpc.allowedHeaders": grpc.allowed_headers if grpc is not None else (),
    }
    for part, found in names.items():
        for i, name in enumerate(found):
            answers = part == "http.allowedResponseHeaders"  # these are set in the request
            if problem := name_problem(name, changes=answers):
                no(f"externalAuth.{part}[{i}]", "UnsupportedValue", problem)
    if body is not None and (problem := number_problem(body.max_size, 0, _BODY_BYTES)):
        no("externalAuth.forwardBody.maxSize", "UnsupportedValue", problem)


def _auth(at: Translation, one: HTTPRouteFilter, field: str, out: Filters, no: _No) -> None:
    spec = one.external_auth
    if spec is None or spec.protocol not in ("GRPC", "HTTP"):
        no("externalAuth.protocol", "UnsupportedValue", "Write GRPC or HTTP.")
        return
    to = backend(at, spec.backend_ref, f"{field}.externalAuth.backendRef")
    if to.backend is None:
        out.bad = True  # nobody can be asked, so nobody gets through
        return
    _check_auth(spec, no)
    grpc = spec.protocol == "GRPC"
    if grpc and to.tls is None:
        to = type(to)(to.backend, to.weight, "h2c")
    http = spec.http
    allowed = spec.grpc.allowed_headers if grpc and spec.grpc else ()
    out.auth = ExternalAuth(
        to,
        grpc,
        path=http.path if http is not None and not grpc else "",
        request_headers=http.allowed_headers if http is not None and not grpc else allowed,
        response_headers=http.allowed_response_headers if http is not None and not grpc else (),
        body_bytes=spec.forward_body.max_size if spec.forward_body is not None else 0,
    )


_APPLY: Final = {
    "RequestHeaderModifier": _request,
    "ResponseHeaderModifier": _response,
    "RequestRedirect": _redirect,
    "URLRewrite": _rewrite,
    "RequestMirror": _mirror,
    "CORS": _cors,
    "ExternalAuth": _auth,
}
_GRPC: Final = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror")
