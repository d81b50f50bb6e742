"""Names that lead somewhere, by where they stand, so that objects made up meet each other."""

from __future__ import annotations

import random
from typing import Any, Final

from fuzz.generate import NOTHING, Schema

__all__ = ["SERVICES", "fit", "hint"]

SERVICES: Final = ("s1", "s2", "s3", "s4", "tls")
HOSTS: Final = ("a.test", "b.test", "*.test", "*.a.test", "c.example.test", "x")
PORTS: Final = (80, 443, 8080)
_EXPRESSIONS: Final = ("/.*", "/[a-z]{1,9}", "^/a|/b$", "[", "(?i)/x", "\\pL+", "/(a+)+", "a{2,3}")
_ADDRESSES: Final = ("10.0.0.1", "10.0.0.2", "010.0.0.3", "fd00::1", "::ffff:10.0.0.4", "a.test")

_BY_NAME: Final[dict[str, tuple[Any, ...]]] = {
    "gatewayClassName": ("avi-lb",),
    "ingressClassName": ("avi-lb",),
    "loadBalancerClass": ("ako.vmware.com/avi-lb",),
    "hostname": HOSTS,
    "hostnames": HOSTS,
    "host": HOSTS,
    "hosts": HOSTS,
    "secretName": ("cert", "none"),
    "protocol": ("TCP", "UDP", "HTTP", "HTTPS", "TLS"),
    "appProtocol": ("kubernetes.io/h2c", "https", "kubernetes.io/ws"),
    "number": PORTS,
    "targetPort": PORTS,
    "addressType": ("IPv4", "IPv4", "IPv6", "FQDN"),
    "sectionName": ("http", "http", "http", "tls", "tcp", "udp"),
    "addresses": _ADDRESSES,
    "namespace": (*("default",) * 12, "other"),
}


def hint(rng: random.Random, path: tuple[str, ...], schema: Schema) -> Any:
    """What would mean something at the end of a path; `NOTHING`: the schema's own choice."""
    if not path or rng.random() < 0.04 or schema.get("type") in ("array", "object"):
        return NOTHING
    own, above = path[-1], path[-2] if len(path) > 1 else ""
    if own == "name" and above in ("backendRefs", "backendRef", "service"):
        return rng.choice(SERVICES)
    if own == "name" and above == "targetRefs":
        return rng.choice(SERVICES[1:])  # how to talk to the canary's is not theirs to say
    if own == "name" and above in ("parentRefs", "parentRef"):
        return "web"
    if own == "name" and above in ("certificateRefs", "clientCertificateRef"):
        return "cert"
    if own == "name" and above == "caCertificateRefs":
        return "authority"
    if own == "kind" and above in ("backendRefs", "backendRef", "targetRefs"):
        return "Service"
    if own == "kind" and above in ("parentRefs", "parentRef"):
        return "Gateway"
    if own == "kind" and above == "certificateRefs":
        return "Secret"
    if own == "kind" and above == "caCertificateRefs":
        return "ConfigMap"
    if own == "group":
        parents = above in ("parentRefs", "parentRef")
        return "gateway.networking.k8s.io" if parents else ""
    if own == "port" and above in ("backendRefs", "backendRef", "parentRefs", "parentRef"):
        return rng.choice(PORTS if above.startswith("backend") else (80, 80, 80, 8080))
    if own == "path" and above == "paths":
        return rng.choice(("/", "/a", "/a/b", "/%7e", "/a b", "a", "/é", "/a?b", "//"))
    if own == "value" and above in ("path", "headers", "queryParams"):
        return rng.choice((*_EXPRESSIONS, "/", "/a", "/a/", "x", NOTHING, NOTHING))
    if own in _BY_NAME:
        enum = schema.get("enum")
        fits = [one for one in _BY_NAME[own] if not enum or one in enum]
        return rng.choice(fits) if fits else NOTHING
    return NOTHING


def fit(rng: random.Random, kind: str, body: dict[str, Any]) -> None:
    """What the API server says of built-in kinds in code, not in its schema: met, mostly."""
    spec = body.get("spec")
    if not isinstance(spec, dict) or rng.random() < 0.05:
        return
    if kind == "Ingress":
        backends = [spec.get("defaultBackend")]
        for rule in spec.get("rules", ()):
            paths = (rule.get("http") or {}).get("paths", ())
            backends += [one.get("backend") for one in paths]
            for one in paths:
                one["pathType"] = rng.choice(("Exact", "Prefix", "ImplementationSpecific"))
                if not str(one.get("path", "/")).startswith("/"):
                    one["path"] = "/" + str(one["path"])[:200]
        for one in backends:
            if isinstance(one, dict):
                one.pop("resource", None)
                port = rng.choice(({"number": rng.choice(PORTS)}, {"name": "p80"}))
                one["service"] = {"name": rng.choice(SERVICES), "port": port}
        if not spec.get("rules") and not spec.get("defaultBackend"):
            spec.pop("defaultBackend", None)
            spec["rules"] = [{"host": rng.choice(HOSTS[:4])}]
    elif kind == "Service":
        keep = ("ports", "type", "loadBalancerSourceRanges", "loadBalancerIP", "sessionAffinity")
        for name in [one for one in spec if one not in keep]:
            del spec[name]
        spec["type"] = rng.choice(("ClusterIP", "LoadBalancer", "LoadBalancer", "NodePort"))
        spec["sessionAffinity"] = rng.choice(("None", "ClientIP"))
        if spec["type"] != "LoadBalancer":
            spec.pop("loadBalancerSourceRanges", None)
            spec.pop("loadBalancerIP", None)
        elif "loadBalancerSourceRanges" in spec:
            spec["loadBalancerSourceRanges"] = rng.sample(
                ("10.0.0.0/8", "fd00::/8", "0.0.0.0/0"), 2
            )
        numbers = rng.sample((1, 80, 443, 8080, 65535), rng.randint(1, 4))
        spec["ports"] = [
            {"name": f"p{n}", "port": n, "protocol": rng.choice(("TCP", "UDP", "TCP", "SCTP"))}
            for n in numbers
        ]
