"""Service Engines as pods: a StatefulSet for each ServiceEngineGroup that has something to serve.

The leader keeps them, by server-side apply under its own field manager: as many pods as placement
wants, with a disruption budget.  A pod is its engine: both have one name.  Its key never leaves it:
it has a token of its own, for which controllers sign its certificate (`akocore.kube.signing`).  A
group that nobody needs any more loses its pods after a while; Kubernetes tells a pod that goes, and
its agent drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from akocore.engines.handover.plan import PORT
from akocore.kube.admission import CAPABILITIES
from akocore.kube.api import ApiError, ApiServer
from akocore.kube.authority import AUDIENCE, CA_CONFIG_MAP, Authority
from akocore.kube.mirrors import object_name
from akocore.kube.objects import ServiceEngineGroupSpec

__all__ = [
    "ACCOUNT",
    "GROUP_LABEL",
    "LABELS",
    "Image",
    "Workloads",
    "disruption_budget",
    "group_of",
    "stateful_set",
]

log = logging.getLogger(__name__)

LABELS = {
    "app.kubernetes.io/name": "akocore",
    "app.kubernetes.io/component": "service-engine",
    "app.kubernetes.io/managed-by": "akocore",
}
GROUP_LABEL = "akocore.io/service-engine-group"
ACCOUNT = "default"
"""The service account of the pods, which may do nothing."""

_GROUP = "--group="
_TOKEN_S = 3600  # the kubelet has another one made long before
_FIELD_MANAGER = "akocore"
_RETRY_S, _UPKEEP_S = 1.0, 15.0
_UNWANTED_S = 60.0  # a group that nobody needs keeps its pods for so long
_GRACE_S = 15  # beyond the drain: withdrawn, routers told, processes ended
_HEALTH_PORT = 9811
_GONE_S = 10.0  # a pod whose time to leave has been over for so long won't say so any more
# A node that is gone is left sooner than after Kubernetes' five minutes.
_AWAY = [
    {
        "key": f"node.kubernetes.io/{why}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 15,
    }
    for why in ("not-ready", "unreachable")
]

_SELECTED = ",".join(f"{key}={value}" for key, value in LABELS.items())

Say = Callable[[str, str, str, str], None]
"""`Events.say`."""


class Image(Struct, frozen=True):
    """What a pod runs.

    ``controllers``: HOST:PORT, as its agent asks for them; ``certificates``: where they sign.
    """

    name: str
    pull_policy: str
    controllers: str
    certificates: str


def _name(group: str) -> str:
    return f"{object_name(group)[:40].rstrip('-.')}-se"


def _labels(group: str) -> dict[str, str]:
    return LABELS | {GROUP_LABEL: object_name(group)[:63].rstrip("-.")}


def _pod(group: str, spec: ServiceEngineGroupSpec, image: Image) -> dict[str, Any]:
    pods = spec.pods
    others = {"labelSelector": {"matchLabels": LABELS}, "topologyKey": "kubernetes.io/hostname"}
    # Two on one network would be one to its routers.
    apart: dict[str, Any] = (
        {"requiredDuringSchedulingIgnoredDuringExecution": [others]}
        if pods.host_network
        else {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "podAffinityTerm": others}
            ]
        }
    )
    field = {"fieldRef": {"fieldPath": "metadata.name"}}
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    ca, token = "/etc/akocore/ca", "/etc/akocore/token"
    for_us = {"audience": AUDIENCE, "expirationSeconds": _TOKEN_S, "path": "token"}
    container = {
        "name": "service-engine",
        "image": image.name,
        "imagePullPolicy": image.pull_policy,
        "args": [
            *("se", "run", "--name=$(POD_NAME)", f"{_GROUP}{group}", "--address=$(POD_IP)"),
            f"--controller={image.controllers}",
            *(f"--certificates={image.certificates}", f"--token={token}/token"),
            *(f"--ca={ca}/ca.crt", "--state=/run/akocore"),
            # On the pod's own address: its VIPs are the node's, and strangers ask those.
            *(f"--metrics-listen=[$(POD_IP)]:{_HEALTH_PORT}", "--log-format=json"),
            f"--flows={pods.drain_seconds}",
        ],
        "env": [{"name": "POD_NAME", "valueFrom": field}, {"name": "POD_IP", "valueFrom": address}],
        "ports": [
            {"name": "health", "containerPort": _HEALTH_PORT},
            {"name": "handover", "containerPort": PORT, "protocol": "UDP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": _HEALTH_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": _HEALTH_PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "initialDelaySeconds": 10,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": list(CAPABILITIES)},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi", **pods.requests},
            **({"limits": pods.limits} if pods.limits else {}),
        },
        "volumeMounts": [
            {"name": "ca", "mountPath": ca, "readOnly": True},
            {"name": "token", "mountPath": token, "readOnly": True},
            {"name": "run", "mountPath": "/run/akocore"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    out: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": pods.host_network,
        "dnsPolicy": "ClusterFirstWithHostNet" if pods.host_network else "ClusterFirst",
        "terminationGracePeriodSeconds": pods.drain_seconds + _GRACE_S,
        "affinity": {"podAntiAffinity": apart},
        "containers": [container],
        "volumes": [
            {"name": "ca", "configMap": {"name": CA_CONFIG_MAP}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": for_us}]}},
            {"name": "run", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    if pods.node_selector:
        out["nodeSelector"] = pods.node_selector
    out["tolerations"] = [
        *({k: v for k, v in msgspec.to_builtins(one).items() if v} for one in pods.tolerations),
        *_AWAY,
    ]
    if pods.priority_class_name:
        out["priorityClassName"] = pods.priority_class_name
    return out


def stateful_set(
    group: str, spec: ServiceEngineGroupSpec, count: int, image: Image
) -> dict[str, Any]:
    """``count`` pods of a group.  They come at once, and are replaced one after another."""
    labels = _labels(group)
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": _name(group), "labels": labels},
        "spec": {
            "replicas": count,
            "serviceName": _name(group),
            "podManagementPolicy": "Parallel",
            "minReadySeconds": 5,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(group, spec, image)},
        },
    }


def group_of(made: dict[str, Any]) -> str:
    """The group of a StatefulSet, if it is one of `stateful_set`'s; else ""."""
    (container, *_) = made["spec"]["template"]["spec"]["containers"]
    groups: list[str] = [
        a.removeprefix(_GROUP) for a in container.get("args", ()) if a.startswith(_GROUP)
    ]
    match groups:
        case [group] if _name(group) == made["metadata"]["name"]:
            return group
    return ""


def _older_secret(name: str) -> str:
    """What releases before had the keys of all engines of a workload in."""
    return f"{name}-xds"


def disruption_budget(group: str) -> dict[str, Any]:
    """One pod of a group at a time may be taken away on purpose."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": _name(group), "labels": _labels(group)},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels(group)}},
    }


class Workloads:
    """``leads()``: whether this replica decides; ``groups()`` and ``wanted()``: what it decides
    on, the latter as `Reconciler.wanted_engines`.  ``renew()`` is called now and then: our own
    certificate may be due.
    """

    def __init__(
        self,
        api: ApiServer,
        namespace: str,
        authority: Authority,
        image: Image,
        *,
        leads: Callable[[], bool],
        groups: Callable[[], Mapping[str, ServiceEngineGroupSpec]],
        wanted: Callable[[], dict[str, int]],
        renew: Callable[[], None],
        now: Callable[[], datetime],
        say: Say,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._authority = authority
        self._image = image
        self._leads = leads
        self._groups = groups
        self._wanted = wanted
        self._renew = renew
        self._now = now
        self._say = say
        self._due = asyncio.Event()
        self._applied: dict[str, bytes] = {}  # path → what we last said
        self._kept: object = None  # what was asked for when all was made so
        self._found: set[str] | None = None  # names of StatefulSets; None: ask, as a new leader
        self._unwanted: dict[str, float] = {}  # name → since when
        self._keyless: set[str] = set()  # StatefulSets that have no Secret any more

    def due(self) -> None:
        """Placement may want other engines now."""
        self._due.set()

    async def run(self) -> None:
        """Keep them, until cancelled."""
        looked = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if self._unwanted else _UPKEEP_S):
                    await self._due.wait()
            self._due.clear()
            upkeep = time.monotonic() - looked >= _UPKEEP_S
            if upkeep:
                looked = time.monotonic()
                self._kept, self._applied = None, {}  # somebody may have changed them
                self._renew()
            if not self._leads():
                self._found = self._kept = None
                self._keyless.clear()
                continue
            try:
                await self._keep(upkeep)
            except (ApiError, TimeoutError) as err:
                why = str(err) or "the API server doesn't answer"
                log.warning("event=workloads_not_kept why=%r", why)
                if isinstance(err, ApiError) and err.code in (403, 422):
                    self._say("Config", "Warning", "ServiceEnginesNotMade", why)
                await asyncio.sleep(_RETRY_S)
                self._due.set()

    async def _keep(self, upkeep: bool) -> None:
        if self._found is None:
            self._found, self._applied = set(await self._list()), {}
        groups, wanted = self._groups(), {g: n for g, n in self._wanted().items() if n}
        asked = {
            group: (spec, min(count, spec.max_se))
            for group, count in sorted(wanted.items())
            for spec in (groups.get(group, ServiceEngineGroupSpec()),)
        }
        if asked != self._kept:
            if asked:
                await self._publish_authority()
            for group, (spec, count) in asked.items():
                pods = stateful_set(group, spec, count, self._image)
                await self._apply("apps/v1", "statefulsets", pods)
                budget = disruption_budget(group)
                await self._apply("policy/v1", "poddisruptionbudgets", budget)
                self._found.add(_name(group))
            self._kept = asked
        await self._drop(self._found - set(map(_name, asked)))
        if upkeep:
            await self._let_go()
            await self._drop_keys()

    async def _let_go(self) -> None:
        """Pods that were to leave and can't say that they have: their node is gone.

        A StatefulSet would wait for ever.  Two engines of one name do no harm: each speaks for the
        address that it has.
        """
        query = {"labelSelector": _SELECTED}
        path = self._path("v1", "pods")
        for pod in orjson.loads(await self._api.request("GET", path, query))["items"]:
            meta = pod["metadata"]
            if (until := meta.get("deletionTimestamp")) is None:
                continue
            late = (self._now() - datetime.fromisoformat(until)).total_seconds()
            if late > _GONE_S:
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
                with contextlib.suppress(ApiError):
                    name = meta["name"]
                    await self._api.request("DELETE", f"{path}/{name}", None, orjson.dumps(body))
                    log.warning("event=pod_let_go name=%s late_s=%.0f", name, late)

    async def _drop(self, names: Iterable[str]) -> None:
        """Whoever is unwanted for long goes."""
        now = time.monotonic()
        self._unwanted = {name: self._unwanted.get(name, now) for name in names}
        for name, since in list(self._unwanted.items()):
            if now - since < _UNWANTED_S:
                continue
            for version, plural, one in (
                ("apps/v1", "statefulsets", name),
                ("policy/v1", "poddisruptionbudgets", name),
                ("v1", "secrets", _older_secret(name)),
            ):
                path = self._path(version, plural, one)
                with contextlib.suppress(KeyError):
                    del self._applied[path]
                await self._delete(path)
            log.info("event=engines_dropped workload=%s", name)
            assert self._found is not None
            self._found.discard(name)
            del self._unwanted[name]

    def _path(self, version: str, plural: str, name: str = "") -> str:
        where = f"/{'apis' if '/' in version else 'api'}/{version}/namespaces/{self._namespace}"
        return f"{where}/{plural}{f'/{name}' if name else ''}"

    async def _list(self) -> list[str]:
        query = {"labelSelector": _SELECTED}
        raw = await self._api.request("GET", self._path("apps/v1", "statefulsets"), query)
        return [one["metadata"]["name"] for one in orjson.loads(raw)["items"]]

    async def _apply(self, version: str, plural: str, wanted: dict[str, Any]) -> None:
        path = self._path(version, plural, wanted["metadata"]["name"])
        said = orjson.dumps(wanted)
        if self._applied.get(path) != said:
            await self._api.apply(path, wanted, _FIELD_MANAGER)
            self._applied[path] = said
            log.info("event=workload_applied path=%s", path)

    async def _publish_authority(self) -> None:
        """Pods know controllers by the certificate of the CA."""
        made = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CA_CONFIG_MAP, "labels": LABELS},
            "data": {"ca.crt": self._authority.ca.decode()},
        }
        await self._apply("v1", "configmaps", made)

    async def _drop_keys(self) -> None:
        """Secrets of older releases go when no pod has them, and none will: all are replaced."""
        query = {"labelSelector": _SELECTED}
        raw = await self._api.request("GET", self._path("apps/v1", "statefulsets"), query)
        made = {one["metadata"]["name"]: one for one in orjson.loads(raw)["items"]}
        self._keyless &= made.keys()
        if not made.keys() - self._keyless:
            return
        pods = await self._api.request("GET", self._path("v1", "pods"), query)
        specs = [pod["spec"] for pod in orjson.loads(pods)["items"]]
        for name, one in made.items():
            secret = _older_secret(name)
            template = one["spec"]["template"]["spec"]
            if (
                name not in self._keyless
                and _is_rolled_out(one)
                and not any(_mounts(spec, secret) for spec in (template, *specs))
            ):
                await self._delete(self._path("v1", "secrets", secret))
                self._keyless.add(name)

    async def _delete(self, path: str) -> None:
        try:
            await self._api.request("DELETE", path)
        except ApiError as err:
            if err.code != 404:
                raise


def _is_rolled_out(made: dict[str, Any]) -> bool:
    """Whether each pod of a StatefulSet that comes from now on is of its newest template."""
    status = made.get("status", {})
    return (
        status.get("observedGeneration") == made["metadata"]["generation"]
        and "updateRevision" in status
        and status.get("currentRevision") == status["updateRevision"]
    )


def _mounts(pod: dict[str, Any], secret: str) -> bool:
    volumes = pod.get("volumes") or ()
    return any(v.get("secret", {}).get("secretName") == secret for v in volumes)
