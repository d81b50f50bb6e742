"""The objects that are there from the start: what made-up ones name, and canaries."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from akocore.kube.objects import KINDS, Change, Object, decode

__all__ = ["Authority", "There", "authority", "change", "first"]

_BASE: Final = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.88.0/22, vipRanges: [{begin: 127.10.88.1, end: 127.10.91.200}]}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: avi-lb}
spec: {controller: ako.vmware.com/avi-lb}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: avi-lb}
spec: {controllerName: ako.vmware.com/avi-lb}
---
apiVersion: networking.x-k8s.io/v1alpha1
kind: GatewayClass
metadata: {name: avi-lb}
spec: {controller: ako.vmware.com/avi-lb}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  gatewayClassName: avi-lb
  allowedListeners: {namespaces: {from: Same}}
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: cert}]}}
  - {name: tls, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
  - {name: tcp, port: 8080, protocol: TCP}
  - {name: udp, port: 8080, protocol: UDP}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: canary, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  ingressClassName: avi-lb
  rules:
  - host: canary.ingress.test
    http:
      paths:
      - {path: /, pathType: Prefix, backend: &s1 {service: {name: s1, port: {number: 80}}}}
  - host: i.test
    http: {paths: [{path: /canary, pathType: Exact, backend: *s1}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web, sectionName: http}, {name: web, sectionName: https}]
  hostnames: [canary.route.test]
  rules: [{backendRefs: [{name: s1, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: among, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web, sectionName: http}]
  hostnames: [a.test, b.test]
  rules:
  - matches: [{path: {type: Exact, value: /canary}}]
    backendRefs: [{name: s1, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: slices, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web, sectionName: http}]
  hostnames: [canary.slices.test]
  rules: [{backendRefs: [{name: s2, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {name: canary, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web, sectionName: tls}]
  hostnames: [canary.tls.test]
  rules: [{backendRefs: [{name: tls, port: 443}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: canary, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web, sectionName: tcp}]
  rules: [{backendRefs: [{name: s1, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: tls, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  targetRefs: [{group: "", kind: Service, name: tls}]
  validation:
    caCertificateRefs: [{group: "", kind: ConfigMap, name: authority}]
    hostname: tls.test
"""
_CLASS: Final = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: infra%d}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: i%d}
---
apiVersion: ako.vmware.com/v1beta1
kind: AviInfraSetting
metadata: {name: i%d}
spec: {network: {vipNetworks: [{networkName: vips}]}}
"""
_TLS: Final = ("s4", "tls")  # Services whose endpoint speaks TLS


class Authority:
    """An authority of certificates, made anew for each run."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority.test")])
        own = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = own.sign(self._key, SHA256()).public_bytes(Encoding.PEM)
        self._leaves: dict[str, tuple[bytes, bytes]] = {}

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )

    def leaf(self, name: str) -> tuple[bytes, bytes]:
        """Certificate and key of a name, as PEM."""
        if name not in self._leaves:
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("*.test")])
            made = self._builder(subject, key).add_extension(names, critical=False)
            self._leaves[name] = (
                made.sign(self._key, SHA256()).public_bytes(Encoding.PEM),
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            )
        return self._leaves[name]


@lru_cache(1)
def authority() -> Authority:
    return Authority()


def change(document: dict[str, Any]) -> Change:
    """A document as the API server has it → a change."""
    kind = KINDS[document["apiVersion"], document["kind"]]
    meta = dict(document["metadata"])
    if not kind.NAMESPACED:
        meta["namespace"] = ""
    obj: Object = decode({**document, "metadata": meta}, kind)
    return Change(kind.stored(), obj.key, obj)


class There:
    """What is there at a time: the first objects and the last so many that were made up."""

    def __init__(self, begin: Iterable[Change], most: int) -> None:
        self.first = {(one.kind, one.key): one for one in begin}
        self._most = most
        self._made: dict[tuple[str, str], None] = {}

    def take(self, changes: Iterable[Change]) -> list[Change]:
        """What changes with these: the oldest go, or are as they were at first."""
        new = {(one.kind, one.key): one for one in changes}
        for id_ in new:
            self._made.pop(id_, None)
            self._made[id_] = None
        out = []
        while len(self._made) > self._most:
            id_ = next(iter(self._made))
            del self._made[id_]
            out.append(self.first.get(id_) or Change(*id_, None))
        return [*out, *new.values()]


def first(backend: int, over_tls: int) -> Iterator[dict[str, Any]]:
    """All that is there; everything leads to two servers at ports of this machine."""
    for one in yaml.safe_load_all(_BASE):
        if one["kind"] == "Gateway":
            for n in range(5):
                one["spec"]["listeners"] += [
                    {"name": f"{kind.lower()}{n}", "port": 9001 + n, "protocol": kind}
                    for kind in ("TCP", "UDP")
                ]
        yield one
    for n in range(5):
        yield from yaml.safe_load_all(_CLASS % (n, n, n))
    yield _keys("v1", "ConfigMap", "authority", {"ca.crt": authority().certificate.decode()})
    cert, key = (base64.b64encode(one).decode() for one in authority().leaf("tls.test"))
    for name in ("cert", *(f"cert{n}" for n in range(5))):
        yield {
            **_keys("v1", "Secret", name, {"tls.crt": cert, "tls.key": key}),
            "type": "kubernetes.io/tls",
        }
    for name in ("s1", "s2", "s3", "s4", "tls", *(f"m{n}" for n in range(5))):
        yield from _service(name, over_tls if name in _TLS else backend)


def _keys(version: str, kind: str, name: str, data: dict[str, str]) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default"}
    return {"apiVersion": version, "kind": kind, "metadata": meta, "data": data}


def _service(name: str, backend: int) -> Iterator[dict[str, Any]]:
    ports = [{"name": f"p{n}", "port": n, "protocol": "TCP"} for n in (80, 443, 8080)]
    ports.append({"name": "udp", "port": 80, "protocol": "UDP"})
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"ports": ports},
    }
    labels = {"kubernetes.io/service-name": name}
    yield {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": p["name"], "protocol": p["protocol"], "port": backend} for p in ports],
        "endpoints": [{"addresses": ["127.0.0.1"]}],
    }
