"""Good objects, a few a kind, that all others are made from: what they name is there.

``$N``: the object's own number, ``$K`` one of five, ``$HOST`` a host of its own or one that many
share, ``$S`` a Service with endpoints.
"""

from __future__ import annotations

import base64
import random
from functools import lru_cache
from typing import Any, Final

import yaml

from fuzz.names import SERVICES, SHARED
from fuzz.world import authority

__all__ = ["base"]

_ROUTE: Final = """
apiVersion: gateway.networking.k8s.io/v1
kind: %s
metadata: {name: x$N, namespace: default}
spec:
  parentRefs: [{name: web, sectionName: %s}]
"""
_HOSTS: Final = "  hostnames: [$HOST]\n"
_PATH: Final = "matches: [{path: {value: /x$N}}]"
_EXACT: Final = "matches: [{path: {type: Exact, value: /x$N}}]"
_BELOW: Final = "matches: [{path: {value: /x$N/b}, method: GET}]"
_CALL: Final = "matches: [{method: {service: x$N.A, method: B}}]"
_BACKEND: Final = "backendRefs: [{name: $S, port: 80}]"
_OWN: Final = "  hostnames: [g$N.own]\n"  # GRPCRoutes and HTTPRoutes share no host
_TO_TLS: Final = "{backendRefs: [{name: tls, port: 443}]}"
_CERTIFICATE: Final = "{certificateRefs: [{name: cert$K}]}"
_HTTP: Final = _ROUTE % ("HTTPRoute", "http") + _HOSTS
_GATEWAY: Final = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: x$N, namespace: default}
spec:
  gatewayClassName: avi-lb
  listeners:
"""
_INGRESS: Final = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: x$N, namespace: default}
spec:
  ingressClassName: %s
  rules:
  - host: $IHOST
    http:
      paths: [{path: /x$N, pathType: Prefix, backend: {service: {name: $S, port: {number: 80}}}}]
"""
_SERVICE: Final = """
apiVersion: v1
kind: Service
metadata: {name: m$K, namespace: default%s}
spec:
  type: LoadBalancer
  loadBalancerClass: ako.vmware.com/avi-lb
  ports: [{name: p80, port: 80, protocol: TCP}]
"""
_NETWORK: Final = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: %s}
spec: {subnet: 127.11.0.0/24, vipRanges: [{begin: 127.11.0.10, end: 127.11.0.99}]%s}
"""
_BGP: Final = ", bgp: {localAs: 64512, peers: [{address: 10.0.0.1, remoteAs: 64513}]}"
_SETTING: Final = """
apiVersion: ako.vmware.com/v1beta1
kind: AviInfraSetting
metadata: {name: i$K}
spec: {network: {vipNetworks: [{networkName: vips}]%s}}
"""
_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "HTTPRoute": (
        f"{_HTTP}  rules: [{{{_PATH}, {_BACKEND}}}]",
        f"{_HTTP}  rules: [{{{_PATH}, {_BACKEND}}}]",
        f"{_HTTP}  rules: [{{{_EXACT}, {_BACKEND}}}, {{{_BELOW}, {_BACKEND}}}]",
        f"{_ROUTE % ('HTTPRoute', 'https')}{_HOSTS}  rules: [{{{_BACKEND}}}]",
        f"{_ROUTE % ('HTTPRoute', 'http')}  rules: [{{{_PATH}, {_BACKEND}}}]",
    ),
    "GRPCRoute": (f"{_ROUTE % ('GRPCRoute', 'http')}{_OWN}  rules: [{{{_CALL}, {_BACKEND}}}]",),
    "TLSRoute": (f"{_ROUTE % ('TLSRoute', 'tls')}  hostnames: [h$N.test]\n  rules: [{_TO_TLS}]",),
    "TCPRoute": (f"{_ROUTE % ('TCPRoute', 'tcp$K')}  rules: [{{{_BACKEND}}}]",),
    "UDPRoute": (f"{_ROUTE % ('UDPRoute', 'udp$K')}  rules: [{{{_BACKEND}}}]",),
    "Gateway": (
        f"{_GATEWAY}  - {{name: http, port: 80, protocol: HTTP}}",
        f"{_GATEWAY}  - {{name: https, port: 443, protocol: HTTPS, tls: {_CERTIFICATE}}}",
        f"{_GATEWAY}  - {{name: tls, port: 443, protocol: TLS, tls: {{mode: Passthrough}}}}",
        f"{_GATEWAY}  - {{name: tcp, port: 7000, protocol: TCP}}",
        f"{_GATEWAY}  - {{name: udp, port: 7000, protocol: UDP}}",
    ),
    "ListenerSet": (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: x$N, namespace: default}
spec:
  parentRef: {name: web}
  listeners: [{name: more, port: 80, protocol: HTTP, hostname: l$N.test}]
""",
    ),
    "BackendTLSPolicy": (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: x$N, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: s4}]
  validation:
    caCertificateRefs: [{group: "", kind: ConfigMap, name: authority}]
    hostname: tls.test
""",
    ),
    "ReferenceGrant": (
        """
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: x$N, namespace: default}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other}]
  to: [{group: "", kind: Service}]
""",
    ),
    "Ingress": (
        _INGRESS % "avi-lb",
        _INGRESS % "infra$K",
        f"{_INGRESS % 'avi-lb'}  tls: [{{hosts: [$IHOST], secretName: cert$K}}]",
    ),
    "Service": (
        _SERVICE % "",
        _SERVICE % ', annotations: {"aviinfrasetting.ako.vmware.com/name": i$K}',
        """
apiVersion: v1
kind: Service
metadata: {name: m$K, namespace: default}
spec: {ports: [{name: p80, port: 80}, {name: p443, port: 443, targetPort: 80}]}
""",
    ),
    "EndpointSlice": (
        """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x$N, namespace: default, labels: {kubernetes.io/service-name: s2}}
addressType: IPv4
ports: [{name: p80, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.$J]}]
""",
        """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x$N, namespace: default, labels: {kubernetes.io/service-name: s2}}
addressType: IPv6
ports: [{name: p80, port: 8080, protocol: TCP}]
endpoints: [{addresses: ["fd00::$J"], conditions: {ready: true}}]
""",
    ),
    "Secret": (
        """
apiVersion: v1
kind: Secret
metadata: {name: cert$K, namespace: default}
type: kubernetes.io/tls
data: {tls.crt: $CERT, tls.key: $PRIVATE}
""",
    ),
    "Network": (
        _NETWORK % ("own", ""),
        _NETWORK
        % ("own", ", bgp: {localAs: 64512, peers: [{address: 10.0.0.1, remoteAs: 64513}]}"),
    ),
    "AviInfraSetting": (
        _SETTING % "",
        _SETTING % ", listeners: [{port: 80}, {port: 443, enableSSL: true}]",
    ),
    "ServiceEngineGroup": (
        """
apiVersion: akocore.io/v1alpha1
kind: ServiceEngineGroup
metadata: {name: g$K}
spec: {}
""",
    ),
    "Gateway of L4": (
        """
apiVersion: networking.x-k8s.io/v1alpha1
kind: Gateway
metadata: {name: l$K, namespace: default}
spec:
  gatewayClassName: avi-lb
  listeners:
  - protocol: TCP
    port: 80
    routes:
      selector:
        matchLabels:
          ako.vmware.com/gateway-namespace: default
          ako.vmware.com/gateway-name: l$K
      group: v1
      kind: Service
""",
    ),
}


@lru_cache(64)
def _parsed(text: str) -> Any:
    return yaml.load(text, yaml.CSafeLoader)


def _filled(part: Any, values: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {k: _filled(v, values) for k, v in part.items()}
    if isinstance(part, list):
        return [_filled(one, values) for one in part]
    if isinstance(part, str) and "$" in part:
        for name, value in values.items():
            part = part.replace(name, value)
    return part


def base(rng: random.Random, kind: str, number: int) -> dict[str, Any]:
    """A good object of a kind (as `schemas.kinds` names it, without a release)."""
    cert, key = (base64.b64encode(one).decode() for one in authority().leaf("tls.test"))
    values = {
        "$N": str(number),
        "$K": str(number % 5),
        "$J": str(number % 5 + 1),
        "$HOST": f"h{number}.own" if rng.random() < 0.7 else rng.choice(SHARED),
        "$IHOST": f"h{number}.own" if rng.random() < 0.7 else "i.test",
        "$S": rng.choice(SERVICES),
        "$CERT": cert,
        "$PRIVATE": key,
    }
    made: dict[str, Any] = _filled(_parsed(rng.choice(_TEXTS[kind])), values)
    return made
