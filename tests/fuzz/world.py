"""The objects that are there from the start: what made-up ones name, and two canaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import yaml

from akocore.kube.objects import KINDS, Change, Object, decode

__all__ = ["CANARIES", "change", "first", "key_of"]

CANARIES: Final = ("canary.ingress.test", "canary.route.test")
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
  listeners:
  - {name: http, port: 80, protocol: HTTP}
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
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s1, port: {number: 80}}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: default, creationTimestamp: "2020-01-01T00:00:00Z"}
spec:
  parentRefs: [{name: web, sectionName: http}]
  hostnames: [canary.route.test]
  rules: [{backendRefs: [{name: s1, port: 80}]}]
"""


def change(document: dict[str, Any]) -> Change:
    """A document as the API server has it → a change."""
    kind = KINDS[document["apiVersion"], document["kind"]]
    meta = dict(document["metadata"])
    if not kind.NAMESPACED:
        meta["namespace"] = ""
    obj: Object = decode({**document, "metadata": meta}, kind)
    return Change(kind.stored(), obj.key, obj)


def key_of(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def first(backend: int) -> Iterator[dict[str, Any]]:
    """All that is there; everything leads to a server at a port of this machine."""
    yield from yaml.safe_load_all(_BASE)
    for name in ("s1", "s2", "s3", "s4", "tls"):
        ports = [{"name": f"p{n}", "port": n, "protocol": "TCP"} for n in (80, 443, 8080)]
        yield {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"ports": [*ports, {"name": "udp", "port": 80, "protocol": "UDP"}]},
        }
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{**{k: p[k] for k in ("name", "protocol")}, "port": backend} for p in ports],
            "endpoints": [{"addresses": ["127.0.0.1"]}],
        }
