"""CustomResourceDefinitions and access rules, made from the Structs that read the objects."""

from __future__ import annotations

from typing import Any

from msgspec import inspect

from akocore.kube.objects import AviInfraSetting, Network, Object, ServiceEngineGroup
from akocore.translate.classes import CONTROLLER, DEFAULT_ANNOTATION

__all__ = ["cluster_role", "crd", "crds", "ingress_class"]

# What the Structs can't say: printer columns, and rules over several fields (CEL).
_COLUMNS: dict[type[Object], list[tuple[str, str, str]]] = {
    AviInfraSetting: [
        ("Status", "string", ".status.status"),
        ("Shard", "string", ".spec.l7Settings.shardSize"),
        ("Error", "string", ".status.error"),
    ],
    ServiceEngineGroup: [
        ("HA", "string", ".spec.haMode"),
        ("Min", "integer", ".spec.minSePerVs"),
        ("Max", "integer", ".spec.maxSePerVs"),
    ],
    Network: [("Subnet", "string", ".spec.subnet")],
}
_RULES: dict[str, list[dict[str, str]]] = {
    "InfraNetwork": [
        {
            "rule": "!has(self.bgpPeerLabels) || size(self.bgpPeerLabels) == 0"
            " || (has(self.enableRhi) && self.enableRhi)",
            "message": "bgpPeerLabels need enableRhi: true",
        }
    ],
}
_ENUMS = {
    ("L7Settings", "shardSize"): ["SMALL", "MEDIUM", "LARGE", "DEDICATED"],
    ("ServiceEngineGroupSpec", "haMode"): ["ActiveActive", "NPlusM", "ActiveStandby"],
}
_SHORT = {ServiceEngineGroup: ["seg"], AviInfraSetting: ["ais"], Network: []}


def _schema(of: inspect.Type) -> dict[str, Any]:
    """The structural OpenAPI v3 schema of a type."""
    match of:
        case inspect.Metadata(type=inner):
            return _schema(inner)
        case inspect.UnionType(types=several):
            (one,) = (t for t in several if not isinstance(t, inspect.NoneType))
            return _schema(one)
        case inspect.StrType():
            return {"type": "string"}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType(ge=low, le=high):
            bounds = {"minimum": low, "maximum": high}
            return {"type": "integer", **{k: v for k, v in bounds.items() if v is not None}}
        case inspect.VarTupleType(item_type=item):
            return {"type": "array", "items": _schema(item)}
        case inspect.StructType(cls=cls, fields=fields):
            properties = {}
            for field in fields:
                properties[field.encode_name] = _schema(field.type)
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


def _field(kind: type[Object], name: str) -> dict[str, Any] | None:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return next((_schema(f.type) for f in info.fields if f.name == name), None)


def crd(kind: type[Object]) -> dict[str, Any]:
    """One CustomResourceDefinition; the last version is the stored one."""
    plural = f"{kind.KIND.lower()}s"
    schema = {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _field(kind, "spec"),
            "status": _field(kind, "status")
            or {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
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
                "shortNames": _SHORT[kind],
            },
            "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": version == kind.VERSIONS[-1],
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
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


def cluster_role() -> dict[str, Any]:
    """What the controller may do.  Secrets: read by name, never listed."""
    read = ["get", "list", "watch"]

    def rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
        return {"apiGroups": [group], "resources": resources, "verbs": verbs}

    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "akocore"},
        "rules": [
            rule("networking.k8s.io", ["ingresses", "ingressclasses"], read),
            rule("networking.k8s.io", ["ingresses/status"], ["patch"]),
            rule("", ["services", "namespaces"], read),
            rule("", ["secrets"], ["get", "watch"]),
            rule("discovery.k8s.io", ["endpointslices"], read),
            rule("ako.vmware.com", ["aviinfrasettings"], read),
            rule("ako.vmware.com", ["aviinfrasettings/status"], ["patch"]),
            rule("akocore.io", ["networks", "serviceenginegroups"], read),
            rule("events.k8s.io", ["events"], ["create", "patch"]),
        ],
    }
