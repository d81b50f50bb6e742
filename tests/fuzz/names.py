"""Names that lead somewhere, by where they stand, so that objects made up meet each other."""

from __future__ import annotations

import random
from typing import Any, Final

from fuzz.generate import NOTHING, Schema

__all__ = ["SERVICES", "SHARED", "Names"]

SERVICES: Final = ("s1", "s1", "s1", "s1", "s2", "s3", "s3", "s3", "s4", "tls")
SHARED: Final = ("a.test", "b.test", "*.test", "*.a.test")
_EXPRESSIONS: Final = ("/.*", "/[a-z]{1,9}", "^/a|/b$", "(?i)/x", "\\pL+", "/(a+)+", "a{2,3}")
_ADDRESSES: Final = ("10.0.0.1", "10.0.0.2", "fd00::1")

_BY_NAME: Final[dict[str, tuple[Any, ...]]] = {
    "gatewayClassName": ("avi-lb",),
    "ingressClassName": ("avi-lb",),
    "loadBalancerClass": ("ako.vmware.com/avi-lb",),
    "hostname": (*SHARED, "tls.test"),
    "hostnames": SHARED,
    "host": SHARED,
    "hosts": SHARED,
    "secretName": ("cert",),
    "protocol": ("HTTP", "TCP", "UDP", "HTTPS", "TLS"),
    "appProtocol": ("kubernetes.io/h2c", "https", "kubernetes.io/ws"),
    "number": (80,),
    "targetPort": (80,),
    "addressType": ("IPv4",),
    "addresses": _ADDRESSES,
    "networkName": ("vips", "own"),
    "cidr": ("10.0.0.0/24", "127.10.88.0/22"),
    "cidrs": ("10.0.0.0/24",),
    "subnet": ("127.11.0.0/24",),
    "begin": ("127.11.0.10",),
    "end": ("127.11.0.99",),
    "prefix": ("10.9.0.0/16",),
    "address": ("10.0.0.1",),
    "localAs": (64512,),
    "remoteAs": (64513,),
    "namespace": ("default",),
    "path": ("/new",),
    "replaceFullPath": ("/new",),
    "replacePrefixMatch": ("/new",),
    "loadBalancerSourceRanges": ("10.0.0.0/8", "0.0.0.0/0"),
}
_REFERENCES: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "backendRefs": ("", "Service", SERVICES),
    "backendRef": ("", "Service", ("s1", "s3")),
    "service": ("", "Service", SERVICES),
    "targetRefs": ("", "Service", ("s4",)),  # how to talk to the canary's is not theirs to say
    "parentRefs": ("gateway.networking.k8s.io", "Gateway", ("web",)),
    "parentRef": ("gateway.networking.k8s.io", "Gateway", ("web",)),
    "certificateRefs": ("", "Secret", ("cert",)),
    "clientCertificateRef": ("", "Secret", ("cert",)),
    "caCertificateRefs": ("", "ConfigMap", ("authority",)),
    "parametersRef": ("ako.vmware.com", "AviInfraSetting", tuple(f"i{n}" for n in range(5))),
}


_TOGETHER: Final = {
    "backendRef": ("port",),
    "backendRefs": ("port",),
    "tls": ("certificateRefs",),
    "cors": ("allowOrigins",),
    "nodeNetworks": ("networkName", "cidrs"),
    "vipNetworks": ("networkName",),
}


class Names:
    """Hints for a `Maker`.  ``own``: the number of the object that is made; ``sure``: always."""

    def __init__(self, sure: bool = True) -> None:
        self.own = 0
        self.sure = sure

    def also(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Properties that are there although no schema says that they must be."""
        names = [step for step in path if step not in ("[]", "*")]
        return _TOGETHER.get(names[-1], ()) if names else ()

    def hint(self, rng: random.Random, path: tuple[str, ...], schema: Schema) -> Any:
        """What would mean something at a path's end; `NOTHING`: the schema's own choice."""
        if not path or schema.get("type") in ("array", "object"):
            return NOTHING
        if not self.sure and rng.random() < 0.04:
            return NOTHING
        names = [step for step in path if step not in ("[]", "*")]
        own, above = names[-1], names[-2] if len(names) > 1 else ""
        if above in _REFERENCES and own in ("group", "kind", "name"):
            group, kind, known = _REFERENCES[above]
            return {"group": group, "kind": kind, "name": rng.choice(known)}[own]
        if own == "port" and above in _REFERENCES:
            return 80
        if own == "path" and above == "paths":
            return f"/x{self.own}"
        if own == "value" and above in ("path", "headers", "queryParams"):
            return rng.choice((*_EXPRESSIONS, NOTHING)) if not self.sure else f"/x{self.own}"
        if own == "sectionName":
            return "http" if above.startswith("parentRef") else NOTHING
        if own in _BY_NAME:
            enum = schema.get("enum")
            fits = [one for one in _BY_NAME[own] if not enum or one in enum]
            return rng.choice(fits) if fits else NOTHING
        return NOTHING
