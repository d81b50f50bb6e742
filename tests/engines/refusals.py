"""Resources that an Envoy refuses, each way of it that is known, and good ones that tell a version.

They are made below translation, which refuses most of these beforehand: this goes on meaning
something when it learns another one.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from envoy.config.route.v3 import scoped_route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from akocore.engines.envoy.gateway import gateway_listener, http_scope
from akocore.engines.envoy.resources import (
    SRDS,
    Encoded,
    encoded,
    scope,
)
from akocore.model import HostModel, Pool, Route
from akocore.model_http import (
    Backend,
    Chain,
    HeaderEdit,
    HttpHost,
    HttpMatch,
    HttpRule,
    KeyMatch,
    Redirect,
    Session,
    TextMatch,
)
from akocore.translate.tls import Certificate

__all__ = [
    "BAD_CERTIFICATES",
    "BAD_ENDPOINTS",
    "BAD_LISTENERS",
    "BAD_RULES",
    "bad_rule",
    "broken_ingress_host",
    "certificate_of",
    "host_of",
    "rule_of",
    "spoilt",
]

_LATER = 4e9  # seconds since 1970: certificates have not expired
_LARGE = "/o" + "/[^/]{1,1000}" * 4  # more instructions than Envoy may take


def rule_of(version: str, path: str = "") -> HttpRule:
    """Answers with a redirect to its version."""
    match = HttpMatch(TextMatch("prefix", path))
    return HttpRule(f"r{path}", match, redirect=Redirect(302, host=f"{version}.test"))


def _with(**changes: Any) -> Callable[[HttpRule], HttpRule]:
    return lambda rule: msgspec.structs.replace(rule, **changes)


_BACKEND = Backend("default/none/80")


def _sent(**changes: Any) -> Callable[[HttpRule], HttpRule]:
    """Of a rule that sends requests on: what is done to them means nothing to a redirect."""
    return _with(redirect=None, backends=(_BACKEND,), **changes)


BAD_RULES: dict[str, Callable[[HttpRule], HttpRule]] = {
    "a pseudo header is removed": _sent(request=HeaderEdit(remove=(":path",))),
    "a header without a name is removed": _sent(request=HeaderEdit(remove=("",))),
    "a header without a name is set": _sent(request=HeaderEdit(set=(("", "x"),))),
    "a pseudo header is set": _sent(request=HeaderEdit(set=((":path", "/x"),))),
    "a newline in a header's name": _with(response=HeaderEdit(set=(("a\nb", "x"),))),
    "a newline in a header's value": _sent(request=HeaderEdit(add=(("a", "x\ny"),))),
    "a large expression": _with(match=HttpMatch(TextMatch("regex", _LARGE))),
    "an empty expression": _with(match=HttpMatch(TextMatch("regex", ""))),
    "no expression": _with(match=HttpMatch(TextMatch("regex", "/("))),
    "a match of no header": _with(
        match=HttpMatch(TextMatch("prefix", ""), headers=(KeyMatch("", TextMatch("exact", "a")),))
    ),
    "a newline in a redirect": _with(redirect=Redirect(302, host="a\nb")),
    "a newline in a host": _sent(rewrite_host="a\nb"),
    "a session without a name": _sent(session=Session("cookie", "")),
    "weights beyond 32 bits": _with(
        redirect=None,
        backends=tuple(Backend(f"default/none/{port}", 1 << 31) for port in (80, 81)),
    ),
}

BAD_ENDPOINTS: dict[str, tuple[str, int]] = {
    "no address": ("", 80),
    "no IPv4 address": ("999.1.1.1", 80),
    "leading zeros": ("010.0.0.1", 80),
    "a zone": ("fe80::1%eth0", 80),
    "a name": ("localhost", 80),
    "no port": ("127.0.0.1", 70000),
}


def host_of(vs: str, port: int, host: str, rule: HttpRule) -> Encoded:
    return http_scope(vs, port, "http", HttpHost(host, (rule,)))


def broken_ingress_host(vs: str, port: int, host: str) -> Encoded:
    """A scope of an Ingress's host of which Envoy says no when it has read it."""
    route = Route("/", exact=False, pool=Pool("p", None))
    return spoilt(scope(vs, port, HostModel(host, "", (route,), "", redirect=False)))


def spoilt(good: Encoded) -> Encoded:
    """A scope, with what Envoy refuses in each route."""
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(good.frame)
    broken = scoped_route_pb2.ScopedRouteConfiguration()
    response.resources[0].resource.Unpack(broken)
    for one in broken.route_configuration.virtual_hosts[0].routes:
        one.request_headers_to_remove.append(":path")
    return encoded(SRDS, good.name, broken, good.collection)


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_of(version: str) -> Certificate:
    """A certificate whose subject is its version."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, version)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(_key(), hashes.SHA256())
    )
    return Certificate(made.public_bytes(Encoding.PEM), _pem(_key()), _LATER)


@cache
def _other() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


BAD_CERTIFICATES: dict[str, Callable[[], Certificate]] = {
    "another's key": lambda: Certificate(certificate_of("bad").chain, _pem(_other()), _LATER),
    "no certificate": lambda: Certificate(b"none", _pem(_key()), _LATER),
    "no key": lambda: Certificate(certificate_of("bad").chain, b"none", _LATER),
}


def _gateway(vs: str, address: str, port: int, chains: Sequence[Chain]) -> Encoded:
    return gateway_listener(vs, address, port, chains)


BAD_LISTENERS: dict[str, Callable[[str, str, int], Encoded]] = {
    "no address": lambda vs, _, port: _gateway(vs, "", port, [Chain("http")]),
    "no IPv4 address": lambda vs, _, port: _gateway(vs, "999.9.9.9", port, [Chain("http")]),
    "an address of nobody": lambda vs, _, port: _gateway(vs, "203.0.113.7", port, [Chain("http")]),
    "no port": lambda vs, address, port: gateway_listener(
        vs, address, port, [Chain("http")], 70000
    ),
    "two chains alike": lambda vs, address, port: _gateway(
        vs, address, port, [Chain("a"), Chain("b")]
    ),
}


def bad_rule(chance: Random, version: str) -> HttpRule:
    return BAD_RULES[chance.choice(sorted(BAD_RULES))](rule_of(version))
