"""CustomResourceDefinitions and access rules, made from the Structs that read the objects."""

from __future__ import annotations

from typing import Any

from msgspec import inspect

from akocore.kube.gateway_objects import DEFINITION, GATEWAY_API
from akocore.kube.objects import (
    OWN_KINDS,
    AviInfraSetting,
    Gateway,
    GatewayClass,
    Network,
    Object,
    Replica,
    ServiceEngine,
    ServiceEngineGroup,
    VirtualService,
    VsVip,
)
from akocore.translate.classes import CONTROLLER, DEFAULT_ANNOTATION

__all__ = [
    "NAMESPACE",
    "access",
    "clean_up_rules",
    "crd",
    "crds",
    "ingress_class",
    "rules",
    "schema_of",
]

NAMESPACE = "akocore-system"
"""Where the controller lives: its account, its Lease, what it remembers of settings."""

# What the Structs can't say: printer columns, and rules over several fields (CEL).
_COLUMNS: dict[type[Object], list[tuple[str, str, str]]] = {
    AviInfraSetting: [
        ("Status", "string", ".status.status"),
        ("Shard", "string", ".spec.l7Settings.shardSize"),
        ("Error", "string", ".status.error"),
    ],
    GatewayClass: [("Controller", "string", ".spec.controller")],
    Gateway: [
        ("Class", "string", ".spec.gatewayClassName"),
        ("Address", "string", ".status.addresses[*].value"),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
    ],
    ServiceEngineGroup: [
        ("HA", "string", ".spec.haMode"),
        ("Min", "integer", ".spec.minSePerVs"),
        ("Max", "integer", ".spec.maxSePerVs"),
    ],
    Network: [
        ("Subnet", "string", ".spec.subnet"),
        ("Status", "string", ".status.status"),
        ("Error", "string", ".status.error"),
    ],
    VsVip: [
        ("Address", "string", ".spec.address"),
        ("Network", "string", ".spec.network"),
        ("VirtualService", "string", ".spec.virtualService"),
    ],
    VirtualService: [
        ("VIP", "string", ".status.vip"),
        ("Shard", "integer", ".status.shard"),
        ("Hosts", "integer", ".status.hosts"),
        ("Up", "integer", ".status.poolsUp"),
        ("Pools", "integer", ".status.pools"),
        ("State", "string", ".status.state"),
        ("Why", "string", ".status.why"),
    ],
    ServiceEngine: [
        ("Group", "string", ".status.seGroup"),
        ("State", "string", ".status.state"),
        ("UpToDate", "boolean", ".status.upToDate"),
        ("VS", "integer", ".status.virtualServices"),
        ("Address", "string", ".status.address"),
        ("BGP", "string", ".status.bgpUp"),
        ("Controller", "string", ".status.controller"),
        ("Why", "string", ".status.why"),
    ],
    Replica: [
        ("Leads", "boolean", ".status.leads"),
        ("Renewed", "date", ".status.renewed"),
    ],
}
_NETWORK_NAMED = {
    "rule": "has(self.networkName) != has(self.networkUUID)",
    "message": "give networkName or networkUUID, not both",
}
_RULES: dict[str, list[dict[str, str]]] = {
    "InfraNetwork": [
        {
            "rule": "!has(self.bgpPeerLabels) || size(self.bgpPeerLabels) == 0"
            " || (has(self.enableRhi) && self.enableRhi)",
            "message": "bgpPeerLabels need enableRhi: true",
        },
        {
            "rule": "!has(self.listeners) || size(self.listeners) == 0"
            " || self.listeners.exists(l, has(l.enableSSL) && l.enableSSL)",
            "message": "one of the listeners must have enableSSL: true",
        },
    ],
    "VipNetwork": [_NETWORK_NAMED],
    "NodeNetwork": [_NETWORK_NAMED],
}
_ENUMS = {
    ("L7Settings", "shardSize"): ["SMALL", "MEDIUM", "LARGE", "DEDICATED"],
    ("ServiceEngineGroupSpec", "haMode"): ["ActiveActive", "NPlusM", "ActiveStandby"],
}
_SHORT = {
    ServiceEngineGroup: ["seg", "segroup"],
    Network: ["net"],
    AviInfraSetting: ["ais"],
    GatewayClass: ["gc"],
    Gateway: ["gtw"],
    VirtualService: ["vs"],
    ServiceEngine: ["se"],
}


def schema_of(of: inspect.Type) -> dict[str, Any]:
    """The structural OpenAPI v3 schema of a type."""
    match of:
        case inspect.Metadata(type=inner):
            return schema_of(inner)
        case inspect.UnionType(types=several):
            (one,) = (t for t in several if not isinstance(t, inspect.NoneType))
            return schema_of(one)
        case inspect.StrType():
            return {"type": "string"}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType(ge=low, le=high):
            bounds = {"minimum": low, "maximum": high}
            return {"type": "integer", **{k: v for k, v in bounds.items() if v is not None}}
        case inspect.FloatType():
            return {"type": "number"}
        case inspect.LiteralType(values=values):
            return {"type": "string", "enum": sorted(values)}
        case inspect.DictType(value_type=value):
            return {"type": "object", "additionalProperties": schema_of(value)}
        case inspect.VarTupleType(item_type=item):
            return {"type": "array", "items": schema_of(item)}
        case inspect.StructType(cls=cls, fields=fields):
            properties = {}
            for field in fields:
                properties[field.encode_name] = schema_of(field.type)
                if names := _ENUMS.get((cls.__name__, field.encode_name)):
                    properties[field.encode_name]["enum"] = names
                if isinstance(field.default, bool | int | str) and field.default:
                    properties[field.encode_name]["default"] = field.default
            out: dict[str, Any] = {"type": "object", "properties": properties}
            if required := [field.encode_name for field in fields if field.required]:
                out["required"] = required
            if rules := _RULES.get(cls.__name__):
                out["x-kubernetes-validations"] = rules
            return out
        case _:
            raise TypeError(f"no schema for {of}")


def _fields(kind: type[Object]) -> dict[str, inspect.Field]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return {field.name: field for field in info.fields}


def crd(kind: type[Object]) -> dict[str, Any]:
    """One CustomResourceDefinition; the last version is the stored one."""
    lower = kind.KIND.lower()
    plural = f"{lower}es" if lower.endswith("s") else f"{lower}s"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    fields = _fields(kind)
    parts = {
        name: schema_of(fields[name].type) if name in fields else None
        for name in ("spec", "status")
    }
    if kind not in OWN_KINDS:
        parts["status"] = parts["status"] or anything
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            **{name: part for name, part in parts.items() if part is not None},
        },
    }
    if "spec" in fields and fields["spec"].required:
        schema["required"] = ["spec"]
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    columns = [{"name": n, "type": t, "jsonPath": p} for n, t, p in _COLUMNS[kind]]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{kind.GROUP}"},
        "spec": {
            "group": kind.GROUP,
            "names": {
                "kind": kind.KIND,
                "listKind": f"{kind.KIND}List",
                "plural": plural,
                "singular": kind.KIND.lower(),
                "shortNames": _SHORT.get(kind, []),
            },
            "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": version == kind.VERSIONS[-1],
                    "schema": {"openAPIV3Schema": schema},
                    # What we alone write needs no part of its own: one write says it all.
                    "subresources": {} if kind in OWN_KINDS else {"status": {}},
                    "additionalPrinterColumns": [*columns, age],
                }
                for version in kind.VERSIONS
            ],
        },
    }


def crds() -> list[dict[str, Any]]:
    """All of them."""
    return [crd(kind) for kind in _COLUMNS]


def ingress_class(default: bool) -> dict[str, Any]:
    """IngressClass ``avi-lb``; ``default``: for Ingresses that name none."""
    meta: dict[str, Any] = {"name": "avi-lb"}
    if default:
        meta["annotations"] = {DEFAULT_ANNOTATION: "true"}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": meta,
        "spec": {"controller": CONTROLLER},
    }


_GATEWAY_API = [
    *("gatewayclasses", "gateways", "listenersets", "referencegrants", "backendtlspolicies"),
    *("httproutes", "grpcroutes", "tlsroutes", "tcproutes", "udproutes"),
]
_TOLD_API = [one for one in _GATEWAY_API if one != "referencegrants"]


def _rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def clean_up_rules() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What ``akocore uninstall`` may do everywhere, and in the controller's namespace."""
    status = ["list", "get", "patch"]
    everywhere = [
        _rule("networking.k8s.io", ["ingresses", "ingresses/status"], status),
        _rule(
            "networking.x-k8s.io",
            ["gateways", "gatewayclasses", "gateways/status", "gatewayclasses/status"],
            status,
        ),
        _rule(GATEWAY_API, [*_TOLD_API, *(f"{one}/status" for one in _TOLD_API)], status),
        _rule("", ["services", "services/status"], status),
        _rule("ako.vmware.com", ["aviinfrasettings", "aviinfrasettings/status"], status),
        _rule("akocore.io", ["networks", "networks/status"], status),
        _rule(
            "akocore.io",
            ["vsvips", "virtualservices", "serviceengines", "replicas"],
            ["list", "delete", "deletecollection"],
        ),
    ]
    at_home = [
        _rule("", ["pods"], ["list"]),
        _rule("apps", ["statefulsets"], ["list", "delete", "deletecollection"]),
        _rule("policy", ["poddisruptionbudgets"], ["list", "delete", "deletecollection"]),
        _rule("", ["secrets"], ["list", "delete", "deletecollection"]),
        _rule("", ["configmaps"], ["list", "delete"]),
        _rule("coordination.k8s.io", ["leases"], ["delete"]),
    ]
    return everywhere, at_home


def rules() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the controller may do everywhere, and in its own namespace besides.

    Secrets are read by name, never listed; those that it makes are in its own namespace.
    """
    of_cluster, of_namespaces = divided_rules()
    return [*of_cluster, *of_namespaces], _at_home()


def divided_rules() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the controller may do to objects of the cluster, and in each namespace that it serves.

    The first need a ClusterRole in any case; the second may be Roles in chosen namespaces
    (``watchNamespaces``).
    """
    read, rule = ["get", "list", "watch"], _rule
    of_cluster = [
        rule("networking.k8s.io", ["ingressclasses"], read),
        rule("networking.x-k8s.io", ["gatewayclasses"], read),
        rule("networking.x-k8s.io", ["gatewayclasses/status"], ["patch"]),
        rule("", ["namespaces"], read),
        {
            **rule("apiextensions.k8s.io", ["customresourcedefinitions"], read),
            "resourceNames": [DEFINITION],
        },
        rule(GATEWAY_API, _GATEWAY_API[:1], read),
        rule(GATEWAY_API, [f"{_GATEWAY_API[0]}/status"], ["patch"]),
        rule("ako.vmware.com", ["aviinfrasettings"], read),
        rule("ako.vmware.com", ["aviinfrasettings/status"], ["patch"]),
        rule("akocore.io", ["networks", "serviceenginegroups"], read),
        rule("akocore.io", ["networks/status"], ["patch"]),
        rule(
            "akocore.io",
            ["vsvips", "virtualservices", "serviceengines", "replicas"],
            [*read, "create", "update", "patch", "delete"],
        ),
        # Which pod a Service Engine is that asks for its certificate.
        rule("authentication.k8s.io", ["tokenreviews"], ["create"]),
        # Those of objects of the cluster are in namespace default.
        rule("events.k8s.io", ["events"], ["create", "get", "patch"]),
    ]
    of_namespaces = [
        rule("networking.k8s.io", ["ingresses"], read),
        rule("networking.k8s.io", ["ingresses/status"], ["patch"]),
        rule("networking.x-k8s.io", ["gateways"], read),
        rule("networking.x-k8s.io", ["gateways/status"], ["patch"]),
        rule("", ["services"], read),
        rule("", ["services/status"], ["patch"]),
        rule("", ["secrets", "configmaps"], ["get", "watch"]),
        rule(GATEWAY_API, _GATEWAY_API[1:], read),
        rule(GATEWAY_API, [f"{one}/status" for one in _GATEWAY_API[1:]], ["patch"]),
        rule("discovery.k8s.io", ["endpointslices"], read),
    ]
    return of_cluster, of_namespaces


def _at_home() -> list[dict[str, Any]]:
    rule = _rule
    return [
        rule("coordination.k8s.io", ["leases"], ["get", "create", "update"]),
        rule("", ["configmaps"], ["get", "watch", "create", "patch"]),
        # Service Engines as pods: their workloads, and the authority of both sides' certificates.
        rule("apps", ["statefulsets"], ["list", "create", "patch", "delete"]),
        rule("policy", ["poddisruptionbudgets"], ["create", "patch", "delete"]),
        rule("", ["secrets"], ["get", "watch", "create", "patch", "delete"]),
        rule("", ["pods"], ["list", "delete"]),
    ]


def access() -> list[dict[str, Any]]:
    """Namespace, account and access rules."""
    rbac = "rbac.authorization.k8s.io"
    everywhere, at_home = rules()
    account = {"kind": "ServiceAccount", "name": "akocore", "namespace": NAMESPACE}

    def bound(kind: str, rules: list[dict[str, Any]], meta: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {"apiVersion": f"{rbac}/v1", "kind": kind, "metadata": meta, "rules": rules},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": f"{kind}Binding",
                "metadata": meta,
                "roleRef": {"apiGroup": rbac, "kind": kind, "name": "akocore"},
                "subjects": [account],
            },
        ]

    here = {"name": "akocore", "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        *bound("ClusterRole", everywhere, {"name": "akocore"}),
        *bound("Role", at_home, here),
    ]
