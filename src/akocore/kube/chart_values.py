"""What the Helm chart's values.schema.json has of the code, and of AKO's own values.yaml.

A value that is misspelt is an error of ``helm install``, never a limit that isn't there: every
name that is neither ours nor one of AKO's chart (1.1 to 2.2) is refused.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from msgspec import Struct, inspect

from akocore.client_limits import ClientLimits
from akocore.config import Limits
from akocore.kube.crds import schema_of
from akocore.kube.objects import NetworkSpec, ServiceEngineGroupSpec

__all__ = ["values_schema"]

_AKO: Final = {
    "": (
        "GatewayAPI VKSSettings ako-crd-operator akoGatewayLogFile avicredentials featureGates"
        " image logFile mountPath nodePortSelector persistentVolumeClaim podSecurityContext rbac"
        " replicaCount resources securityContext service"
    ),
    "AKOSettings": (
        "apiServerPort blockedNamespaceList cniPlugin deleteConfig disableStaticRouteSync enableEVH"
        " enableEvents fullSyncFrequency ipFamily istioEnabled layer7Only namespaceSelector"
        " primaryInstance servicesAPI useDefaultSecretsOnly vipPerNamespace vpcMode"
    ),
    "NetworkSettings": "defaultDomain nodeNetworkList nsxtT1LR subnetIP subnetPrefix",
    "L7Settings": (
        "enableMCI l7ShardingScheme noPGForSNI passthroughShardSize serviceType syncNamespace"
    ),
    "L4Settings": "advancedL4 autoFQDN defaultDomain",
    "ControllerSettings": (
        "cloudName controllerHost controllerIP controllerVersion dedicatedTenantMode tenantName"
        " tenantsPerCluster vrfName"
    ),
}
"""Values that AKO's chart has and that have nothing to say here, by section."""

_HELM: Final = ("global",)  # what Helm itself may put among the values


def values_schema(text: str) -> str:
    """values.schema.json as it is to be: the parts that follow from the code, made anew."""
    made = orjson.loads(text)
    top = made["properties"]
    top["clientLimits"] = _of(ClientLimits)
    top["controller"]["properties"]["limits"] = _of(Limits)
    top["networks"]["additionalProperties"] = _of(NetworkSpec)
    top["serviceEngineGroups"]["additionalProperties"] = _of(ServiceEngineGroupSpec)
    for section, names in _AKO.items():
        at = top[section] if section else made
        at["additionalProperties"] = False
        for name in names.split() + list(() if section else _HELM):
            at["properties"].setdefault(name, True)
    return orjson.dumps(made, option=orjson.OPT_INDENT_2).decode() + "\n"


def _of(struct: type[Struct]) -> Any:
    return _closed(schema_of(inspect.type_info(struct)))


def _closed(schema: Any) -> Any:
    """With no fields but those that are named, nothing of Kubernetes alone, and no defaults."""
    if not isinstance(schema, dict):
        return schema
    out = {
        key: {name: _closed(of) for name, of in value.items()}
        if key == "properties"
        else _closed(value)
        for key, value in schema.items()
        if not key.startswith("x-") and key not in ("default", "format")
    }
    return out | {"additionalProperties": False} if "properties" in out else out
