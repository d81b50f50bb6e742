"""Filters of HTTPRoutes and GRPCRoutes → what a rule does to its requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct

from akocore.kube.gateway_objects import (
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

__all__ = ["TOKEN", "Filters", "filters"]

TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_|~`]+")
_STATUS: Final = (301, 302, 303, 307, 308)


class Filters(Struct):
    """``bad``: a filter can't be applied, so its requests must not go on."""

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
    return out


# ── one filter ──────────────────────────────────────────────────────────────────────────────


def _edit(spec: HTTPHeaderFilter | None, part: str, no: _No) -> HeaderEdit:
    if spec is None:
        no(part, "UnsupportedValue", f"Add {part}.")
        return HeaderEdit()
    pairs: list[tuple[tuple[str, str], ...]] = []
    for name, headers in (("set", spec.set), ("add", spec.add)):
        kept: dict[str, tuple[str, str]] = {}
        for i, one in enumerate(headers):
            if not TOKEN.fullmatch(one.name) or not one.value.isprintable():
                no(f"{part}.{name}[{i}]", "UnsupportedValue", f"{quoted(one.name)!r} is no header.")
            else:
                kept.setdefault(one.name.lower(), (one.name, one.value))
        pairs.append(tuple(kept.values()))
    return HeaderEdit(pairs[0], pairs[1], tuple(dict.fromkeys(n.lower() for n in spec.remove)))


def _request(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    out.request = _edit(one.request_header_modifier, "requestHeaderModifier", no)


def _response(_at: Translation, one: HTTPRouteFilter, _field: str, out: Filters, no: _No) -> None:
    out.response = _edit(one.response_header_modifier, "responseHeaderModifier", no)


def _path(spec: HTTPPathModifier | None, part: str, no: _No) -> PathRewrite | None:
    if spec is None:
        return None
    text = spec.replace_full_path or spec.replace_prefix_match or "/"
    if not text.startswith("/") or not text.isprintable() or " " in text:
        no(f"{part}.path", "UnsupportedValue", f"{quoted(text)!r} is no path. Begin with a slash.")
        return None
    if spec.type == "ReplaceFullPath" and spec.replace_full_path is not None:
        return PathRewrite("full", spec.replace_full_path)
    if spec.type == "ReplacePrefixMatch" and spec.replace_prefix_match is not None:
        return PathRewrite("prefix", spec.replace_prefix_match)
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
    out.cors = Cors(
        spec.allow_origins,
        spec.allow_methods,
        spec.allow_headers,
        spec.expose_headers,
        spec.allow_credentials,
        spec.max_age,
    )


def _auth(at: Translation, one: HTTPRouteFilter, field: str, out: Filters, no: _No) -> None:
    spec = one.external_auth
    if spec is None or spec.protocol not in ("GRPC", "HTTP"):
        no("externalAuth.protocol", "UnsupportedValue", "Write GRPC or HTTP.")
        return
    to = backend(at, spec.backend_ref, f"{field}.externalAuth.backendRef")
    if to.backend is None:
        out.bad = True  # nobody can be asked, so nobody gets through
        return
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
