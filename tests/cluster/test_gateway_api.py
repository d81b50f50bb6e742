"""The Gateway API as a real API server has it: statuses, versions, other controllers' entries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ControlPlane
from cluster.controller import Controller
from cluster.gateway_api import GROUP, definitions, plural
from cluster.test_external import Site, scratch
from e2e.running import Client
from e2e.test_tls import pair

__all__ = ["scratch"]

pytestmark = pytest.mark.real

OBJECTS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.225, end: 127.10.16.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [vips]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: avi-lb}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: default}
spec:
  gatewayClassName: avi-lb
  listeners:
  - {name: http, port: 80, protocol: HTTP}
---
apiVersion: v1
kind: Service
metadata: {name: hello, namespace: default}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hello, namespace: default, labels: {kubernetes.io/service-name: hello}}
addressType: IPv4
ports: [{port: BACKEND_PORT}]
endpoints: [{addresses: [BACKEND]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: hello, namespace: default}
spec:
  parentRefs: [{name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /app}}]
    backendRefs: [{name: hello, port: 80}]
"""


def forget(plane: ControlPlane) -> None:
    """Take away what a test made of the kinds that it needs."""
    kinds = ",".join(f"{plural(one)}.{GROUP}" for one in ("gatewayclass", "gateway", "httproute"))
    plane.kubectl("delete", "--all", "--wait=false", kinds)


class Cluster:
    """What kubectl says of the objects of the Gateway API."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.until = controller.until
        address, _, port = controller.endpoint.partition(":")
        self.objects = OBJECTS.replace("BACKEND_PORT", port).replace("BACKEND", address)

    def apply(self, text: str) -> None:
        self.controller.apply(text)

    async def serve(self) -> None:
        """Its objects, until the Gateway has its address."""
        self.apply(self.objects)
        await self.controller.start()
        await self.until(lambda: bool(self.address()))

    def status(self, kind: str, name: str) -> dict[str, Any]:
        words = ("get", f"{plural(kind)}.{GROUP}", name, "-o", "json")
        found: dict[str, Any] = json.loads(self.controller.plane.kubectl(*words))
        return found.get("status", {})

    def conditions(self, kind: str, name: str) -> dict[str, tuple[str, str]]:
        return _said(self.status(kind, name).get("conditions", ()))

    def parents(self, kind: str, name: str) -> dict[str, dict[str, tuple[str, str]]]:
        """Controller → its conditions."""
        return {
            one["controllerName"]: _said(one["conditions"])
            for one in self.status(kind, name).get("parents", ())
        }

    def address(self) -> str:
        addresses = self.status("gateway", "web").get("addresses", ())
        return str(addresses[0]["value"]) if addresses else ""

    async def answers(self, path: str) -> int:
        client = Client()
        try:
            return await client.get(self.address(), "any.example.test", path)
        finally:
            client.close()


def _said(conditions: Any) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in conditions}


@pytest.fixture
def cluster(defined: ControlPlane, controller: Controller) -> Iterator[Cluster]:
    yield Cluster(controller)
    forget(defined)


async def test_definitions_that_come_later_are_picked_up(
    undefined: ControlPlane, controller: Controller
) -> None:
    await controller.start()
    await controller.until_ready()
    path = definitions("standard")
    undefined.kubectl("apply", "--server-side", "-f", path)
    try:
        undefined.kubectl("wait", "--for=condition=Established", f"crd/gateways.{GROUP}")
        cluster = Cluster(controller)
        cluster.apply(cluster.objects)
        await cluster.until(lambda: bool(cluster.address()), 30)
        assert await cluster.answers("/app") == 200
    finally:
        forget(undefined)


async def test_a_gateway_and_its_route_are_served_and_say_so(cluster: Cluster) -> None:
    await cluster.serve()
    assert cluster.conditions("gatewayclass", "avi-lb")["Accepted"] == ("True", "Accepted")
    features = [
        one["name"] for one in cluster.status("gatewayclass", "avi-lb")["supportedFeatures"]
    ]
    version = cluster.conditions("gatewayclass", "avi-lb")["SupportedVersion"]
    assert version == ("True", "SupportedVersion")
    assert "HTTPRoute" in features
    assert features == sorted(features)
    said = cluster.conditions("gateway", "web")
    assert said["Accepted"] == ("True", "Accepted")
    assert said["Programmed"] == ("True", "Programmed")
    (listener,) = cluster.status("gateway", "web")["listeners"]
    assert listener["attachedRoutes"] == 1
    assert _said(listener["conditions"]) == {
        "Accepted": ("True", "Accepted"),
        "Conflicted": ("False", "NoConflicts"),
        "Programmed": ("True", "Programmed"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    ours = "ako.vmware.com/avi-lb"
    assert cluster.parents("httproute", "hello")[ours] == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    assert await cluster.answers("/app/x") == 200
    assert await cluster.answers("/other") == 404


async def test_another_controllers_entries_of_a_route_stay_as_they_are(cluster: Cluster) -> None:
    cluster.apply(cluster.objects)
    entry = {
        "parentRef": {"name": "theirs", "sectionName": "x"},
        "controllerName": "example.net/other",
        "conditions": [
            {
                "type": "Accepted",
                "status": "True",
                "reason": "Accepted",
                "message": "",
                "observedGeneration": 7,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    patch = json.dumps({"status": {"parents": [entry]}})
    words = ("patch", "httproute", "hello", "--subresource=status", "--type=merge", "-p", patch)
    cluster.controller.plane.kubectl(*words)
    before = cluster.status("httproute", "hello")["parents"]
    await cluster.controller.start()
    await cluster.until(lambda: len(cluster.parents("httproute", "hello")) == 2)
    after = cluster.status("httproute", "hello")["parents"]
    assert [one for one in after if one["controllerName"] == "example.net/other"] == before
    cluster.controller.plane.kubectl("delete", "gateways.gateway.networking.k8s.io", "web")
    await cluster.until(lambda: cluster.status("httproute", "hello")["parents"] == before)


async def test_the_generation_that_a_condition_speaks_of_follows_each_edit(
    cluster: Cluster,
) -> None:
    await cluster.serve()
    more = "  - {name: other, port: 8080, protocol: HTTP}\n---\napiVersion: v1\nkind: Service"
    cluster.apply(cluster.objects.replace("---\napiVersion: v1\nkind: Service", more, 1))

    def observed() -> bool:
        found = json.loads(
            cluster.controller.plane.kubectl(
                "get", "gateways.gateway.networking.k8s.io", "web", "-o", "json"
            )
        )
        status = found["status"]
        said = [*status["conditions"], *(c for x in status["listeners"] for c in x["conditions"])]
        return len(status["listeners"]) == 2 and all(
            one["observedGeneration"] == found["metadata"]["generation"] == 2 for one in said
        )

    await cluster.until(observed)
    # What is served all the while is never said to be gone.
    assert "Withdrawn" not in cluster.controller.log.read_text()


async def test_a_controller_that_is_killed_and_started_again_writes_nothing_that_is_there(
    cluster: Cluster,
) -> None:
    await cluster.serve()
    await cluster.controller.until_settled()

    def versions() -> list[str]:
        kinds = ("gatewayclass", "gateway", "httproute")
        words = ("get", ",".join(f"{plural(one)}.{GROUP}" for one in kinds), "-o", "json")
        found = json.loads(cluster.controller.plane.kubectl(*words))["items"]
        return [one["metadata"]["resourceVersion"] for one in found]

    before = versions()
    assert len(before) == 3
    await cluster.controller.kill()
    assert await cluster.answers("/app") == 200
    await cluster.controller.start()
    await cluster.controller.until_ready()
    await cluster.controller.until_settled()
    assert versions() == before
    assert await cluster.answers("/app") == 200


SECURE = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: secure, namespace: default}
spec:
  gatewayClassName: avi-lb
  listeners:
  - name: https
    port: 443
    protocol: HTTPS
    tls: {certificateRefs: [{name: web}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: secure, namespace: default}
spec:
  parentRefs: [{name: secure}]
  rules:
  - backendRefs: [{name: hello, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: hello, namespace: default}
spec:
  targetRefs: [{group: "", kind: Service, name: hello}]
  validation:
    hostname: hello.example.test
    caCertificateRefs: [{group: "", kind: ConfigMap, name: authorities}]
"""


async def test_secrets_and_config_maps_that_are_named_are_followed_one_by_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    chain, key, _ = pair("hello.example.test")
    files = {"tls.crt": chain, "tls.key": key}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    kubectl = cluster.controller.plane.kubectl
    cluster.apply(cluster.objects + "---" + SECURE)
    await cluster.controller.start()

    def listener() -> dict[str, tuple[str, str]]:
        found = cluster.status("gateway", "secure").get("listeners", ())
        return _said(found[0]["conditions"]) if found else {}

    def policy() -> dict[str, tuple[str, str]]:
        found = cluster.status("backendtlspolicy", "hello").get("ancestors", ())
        return _said(found[0]["conditions"]) if found else {}

    try:
        wanted = ("False", "InvalidCertificateRef")
        await cluster.until(lambda: listener().get("ResolvedRefs") == wanted)
        await cluster.until(lambda: policy().get("Accepted") == ("False", "NoValidCACertificate"))
        pem = [
            f"--{part}={tmp_path / f'tls.{end}'}" for part, end in (("cert", "crt"), ("key", "key"))
        ]
        kubectl("create", "secret", "tls", "web", *pem)
        kubectl("create", "configmap", "authorities", f"--from-file=ca.crt={tmp_path / 'tls.crt'}")
        await cluster.until(lambda: listener().get("Programmed") == ("True", "Programmed"))
        await cluster.until(lambda: policy().get("Accepted") == ("True", "Accepted"))
        kubectl("delete", "secret", "web")
        await cluster.until(lambda: listener().get("ResolvedRefs") == wanted)
    finally:
        kubectl("delete", "--ignore-not-found", "configmap", "authorities")
        kubectl("delete", "--ignore-not-found", f"backendtlspolicies.{GROUP}", "hello")


async def test_labels_of_a_gateways_infrastructure_are_on_its_virtual_service(
    cluster: Cluster,
) -> None:
    await cluster.serve()

    def services(selector: str) -> list[str]:
        words = ("get", "virtualservices", "-l", selector, "-o", "json")
        return [
            one["metadata"].get("annotations", {}).get("note", "")
            for one in json.loads(cluster.controller.plane.kubectl(*words))["items"]
        ]

    def infrastructure(text: str) -> None:
        patch = f'{{"spec": {{"infrastructure": {text}}}}}'
        kind = f"gateways.{GROUP}/web"
        cluster.controller.plane.kubectl("patch", kind, "--type=merge", "-p", patch)

    await cluster.until(lambda: services(f"{GROUP}/gateway-name=web") == [""])
    infrastructure('{"labels": {"team": "a"}, "annotations": {"note": "b"}}')
    await cluster.until(lambda: services("team=a") == ["b"])
    infrastructure('{"labels": {"team": "c"}, "annotations": null}')
    await cluster.until(lambda: services("team=c") == [""])
    infrastructure("null")
    await cluster.until(lambda: services("team") == [])
    assert services(f"{GROUP}/gateway-name=web") == [""]


async def test_replicas_serve_a_gateway_alike_and_a_killed_leader_changes_nothing(
    defined: ControlPlane, plane: ControlPlane, scratch: Path, endpoint: str
) -> None:
    site = Site(scratch, plane, endpoint)
    cluster = Cluster(site.one)

    async def answers(path: str) -> set[int]:
        """On connections of their own: the kernel gives them to the engines of both."""
        return {await cluster.answers(path) for _ in range(40)}

    try:
        cluster.apply(cluster.objects)
        await site.one.start()
        await site.two.start()
        await site.engine_at(site.one, "se-1")
        await site.engine_at(site.two, "se-2")
        await cluster.until(lambda: bool(cluster.address()))
        address = cluster.address()
        assert await answers("/app") == {200}
        leader, left = (site.one, site.two) if await site.one.leads() else (site.two, site.one)
        await leader.kill()
        route = cluster.objects.rpartition("---")[2].replace("name: hello, n", "name: more, n")
        cluster.apply(route.replace("/app", "/more"))
        await site.until(lambda: left.has("se-1", "se-2"), 30)
        await cluster.until(lambda: bool(cluster.parents("httproute", "more")))
        said = cluster.parents("httproute", "more")["ako.vmware.com/avi-lb"]
        assert said["Accepted"] == ("True", "Accepted")
        assert await answers("/more") == {200}
        assert await answers("/app") == {200}
        assert cluster.address() == address
        (listener,) = cluster.status("gateway", "web")["listeners"]
        assert listener["attachedRoutes"] == 2
    finally:
        await site.stop()
        forget(defined)
