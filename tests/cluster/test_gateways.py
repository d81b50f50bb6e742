"""The walkthrough's section on Gateways, against a real API server, with kubectl's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from akocore.kube import crds
from cluster.control_plane import ControlPlane
from cluster.controller import Controller
from cluster.test_controller import bare
from e2e.running import Client

__all__ = ["bare"]

pytestmark = pytest.mark.real

CONFIG = """
moveGraceSeconds: 1
serviceEngineGroups: {Default-Group: {}, SE-Group-AKO-CRITICAL: {}}
networks:
  default: {subnet: 127.10.15.0/24, vipRanges: [{begin: 127.10.15.161, end: 127.10.15.190}]}
  REGA_EXT_UPLINKB_3016:
    {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.227, end: 127.10.16.254}]}
  six: {subnet: "::1/128", vipRanges: [{begin: "::1", end: "::1"}]}
defaults: {otherNetwork: six}
"""
CLASS = """
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata:
  name: critical.infra
spec:
  seGroup:
    name: SE-Group-AKO-CRITICAL
  network:
    names:
    - REGA_EXT_UPLINKB_3016
---
apiVersion: networking.x-k8s.io/v1alpha1
kind: GatewayClass
metadata:
  name: critical-gwc
spec:
  controller: ako.vmware.com/avi-lb
  parametersRef:
    group: ako.vmware.com
    kind: AviInfraSetting
    name: critical.infra
"""
HEAD = """
apiVersion: networking.x-k8s.io/v1alpha1
kind: Gateway
metadata:
  name: avi-alb-gw
  namespace: default
spec:
  gatewayClassName: critical-gwc
"""
ADDRESSES = """
  addresses:
  - type: IPAddress
    value: 127.10.16.232
"""
LISTENER = """
  - protocol: TCP
    port: PORT
    routes:
      selector:
       matchLabels:
        ako.vmware.com/gateway-namespace: default
        ako.vmware.com/gateway-name: avi-alb-gw
      group: v1
      kind: Service
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: NAME
  labels:
    ako.vmware.com/gateway-namespace: default
    ako.vmware.com/gateway-name: avi-alb-gw
spec:
  type: LoadBalancer
  ports:
  - port: PORT
    targetPort: 8080
  selector:
    app: hello
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}
addressType: IPv4
ports: [{port: BACKEND_PORT}]
endpoints: [{addresses: [BACKEND]}]
"""


def gateway(*ports: int, more: str = "") -> str:
    listeners = "".join(LISTENER.replace("PORT", str(port)) for port in ports)
    return f"{HEAD}{more}  listeners:\n{listeners}"


class Walk:
    """A controller and what kubectl prints of Gateways and Services."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.apply = controller.apply
        self.until = controller.until

    def service(self, name: str, port: int) -> None:
        address, _, number = self.controller.endpoint.partition(":")
        text = SERVICE.replace("NAME", name).replace("BACKEND_PORT", number)
        self.apply(text.replace("BACKEND", address).replace("PORT", str(port)))

    def kubectl(self, *words: str) -> str:
        return self.controller.plane.kubectl(*words)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found.get("status", {})

    def external(self) -> dict[str, str]:
        """Service → EXTERNAL-IP, as ``kubectl get service`` prints them."""
        lines = self.kubectl("get", "service", "--no-headers").splitlines()
        return {line.split()[0]: line.split()[3] for line in lines}

    def ready(self) -> bool:
        status = self.get("gateway", "avi-alb-gw")
        conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
        listeners = [c["status"] for one in status.get("listeners", ()) for c in one["conditions"]]
        return conditions.get("Ready") == "True" and set(listeners) == {"True"}

    def shows(self, **wanted: str) -> Callable[[], bool]:
        return lambda: wanted.items() <= self.external().items()

    async def answers(self, address: str, port: int) -> int:
        client = Client(port + 9100)
        try:
            return await client.get(address, "anything")
        finally:
            client.close()


@pytest.fixture
def walk(controller: Controller) -> Walk:
    controller.config = CONFIG
    return Walk(controller)


async def test_the_walkthroughs_gateway_from_its_class_to_an_address_of_its_own(
    walk: Walk,
) -> None:
    began = datetime.now(UTC) - timedelta(seconds=5)
    await walk.controller.start()
    walk.apply(CLASS)
    walk.apply(gateway(80))
    await walk.until(walk.ready, 20)
    first = walk.get("gateway", "avi-alb-gw")
    assert first["addresses"] == [{"type": "IPAddress", "value": "127.10.16.227"}]
    vs = walk.kubectl("get", "vs", "--no-headers").split()
    assert vs[:2] == ["my-cluster--default-avi-alb-gw", "127.10.16.227"]

    walk.service("hello", 80)
    await walk.until(walk.shows(hello="127.10.16.227"))
    assert await walk.answers("127.10.16.227", 80) == 200

    walk.apply(gateway(8080, 80))
    walk.service("hello8080", 8080)
    await walk.until(walk.shows(hello="127.10.16.227", hello8080="127.10.16.227"))
    assert await walk.answers("127.10.16.227", 8080) == 200
    await walk.until(walk.ready)
    said = walk.kubectl("describe", "gateway", "avi-alb-gw")
    assert "1970" not in said
    assert "Waiting for controller" not in said
    assert re.findall(r"^ +Port: +(\d+)$", said.partition("Status:")[2], re.MULTILINE) == [
        *("8080", "80")
    ]
    times = re.findall(r"Last Transition Time: +(\S+)", said)
    assert len(times) == 4
    assert all(datetime.fromisoformat(one) > began for one in times)

    uid = json.loads(walk.kubectl("get", "gateway", "avi-alb-gw", "-o", "json"))["metadata"]["uid"]
    walk.apply(gateway(8080, 80, more=ADDRESSES))
    await walk.until(walk.shows(hello="127.10.16.232", hello8080="127.10.16.232"))
    assert [await walk.answers("127.10.16.232", n) for n in (80, 8080)] == [200, 200]
    found = json.loads(walk.kubectl("get", "gateway", "avi-alb-gw", "-o", "json"))
    assert found["metadata"]["uid"] == uid
    assert found["status"]["addresses"] == [{"type": "IPAddress", "value": "127.10.16.232"}]
    vips = walk.kubectl("get", "vsvips", "--no-headers").split()
    assert "127.10.16.232" in vips

    walk.kubectl("delete", "gateway", "avi-alb-gw")
    await walk.until(walk.shows(hello="<pending>", hello8080="<pending>"))
    (condition,) = walk.get("service", "hello")["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "GatewayNotFound")


async def test_what_is_refused_is_said_on_both_objects_and_taken_back(walk: Walk) -> None:
    await walk.controller.start()
    walk.apply(CLASS.replace("kind: AviInfraSetting\n    name", "kind: Secret\n    name"))
    walk.apply(gateway(80))
    walk.service("hello", 80)

    def condition(kind: str, name: str, type_: str) -> tuple[str, str]:
        for one in walk.get(kind, name).get("conditions", ()):
            if one["type"] == type_:
                return one["status"], one["reason"]
        return "", ""

    await walk.until(
        lambda: (
            condition("gatewayclass", "critical-gwc", "Admitted") == ("False", "InvalidParameters")
        )
    )
    await walk.until(
        lambda: condition("gateway", "avi-alb-gw", "Scheduled") == ("False", "InvalidParameters")
    )
    await walk.until(
        lambda: (
            condition("service", "hello", "akocore.io/Accepted") == ("False", "GatewayNotServed")
        )
    )
    walk.apply(CLASS)
    await walk.until(walk.shows(hello="127.10.16.227"))
    assert condition("gatewayclass", "critical-gwc", "Admitted")[0] == "True"
    events = walk.kubectl("get", "events", "-o", "json")
    assert {"InvalidParameters", "Programmed"} <= {e["reason"] for e in json.loads(events)["items"]}

    other = CLASS.replace("ako.vmware.com/avi-lb", "example.com/another")
    walk.apply(other)  # from now on another controller speaks for them
    await walk.until(lambda: not walk.get("gatewayclass", "critical-gwc")["conditions"])
    await walk.until(lambda: not walk.get("gateway", "avi-alb-gw")["conditions"])
    await walk.until(walk.shows(hello="<pending>"))
    walk.apply(CLASS)
    await walk.until(walk.shows(hello="127.10.16.227"))

    walk.kubectl("label", "service", "hello", "ako.vmware.com/gateway-name-")
    await walk.until(walk.shows(hello="<pending>"))
    spec = {"spec": {"type": "ClusterIP"}}
    walk.kubectl("label", "service", "hello", "ako.vmware.com/gateway-namespace-")
    walk.kubectl("patch", "service", "hello", "-p", json.dumps(spec))
    await walk.until(lambda: not walk.get("service", "hello").get("conditions"))


async def test_a_controller_killed_and_started_again_writes_no_status_that_is_there(
    walk: Walk,
) -> None:
    await walk.controller.start()
    walk.apply(CLASS)
    walk.apply(gateway(80, more=ADDRESSES))
    walk.service("hello", 80)
    await walk.until(walk.shows(hello="127.10.16.232"))
    await walk.until(walk.ready)
    await walk.controller.until_settled()

    def versions() -> list[str]:
        found = json.loads(walk.kubectl("get", "gateways,services,gatewayclasses", "-o", "json"))
        return [item["metadata"]["resourceVersion"] for item in found["items"]]

    before = versions()
    await walk.controller.kill()
    assert await walk.answers("127.10.16.232", 80) == 200  # the engines serve on
    await walk.controller.start()
    await walk.controller.until_ready()
    await walk.controller.until_settled()
    assert versions() == before
    assert await walk.answers("127.10.16.232", 80) == 200


async def test_gateways_are_served_from_when_their_definitions_come(bare: Controller) -> None:
    controller, plane = bare, bare.plane
    controller.config = CONFIG
    walk = Walk(controller)
    definitions = crds.crds()
    later = [one for one in definitions if one["spec"]["group"] == "networking.x-k8s.io"]
    assert len(later) == 2

    def apply(items: list[dict[str, Any]]) -> None:
        controller.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    apply([*(one for one in definitions if one not in later), *crds.access()])
    plane.bind_controller()
    await controller.start()
    await controller.until_ready()
    apply(later)
    plane.kubectl("wait", "--for=condition=Established", "crd", "gateways.networking.x-k8s.io")
    walk.apply(CLASS)
    walk.apply(gateway(80))
    await walk.until(walk.ready, 20)


async def test_a_follower_serves_the_same_vip_and_moves_it_when_it_leads(
    tmp_path: Path, plane: ControlPlane, endpoint: str
) -> None:
    first, second = (Controller(tmp_path / name, plane, endpoint) for name in ("one", "two"))
    for one in (first, second):
        one.config = CONFIG
        one.flags = ["--lease-duration", "3"]
    walk = Walk(first)
    walk.apply(CLASS)
    walk.apply(gateway(80))
    walk.service("hello", 80)
    await first.start()
    await walk.until(walk.shows(hello="127.10.16.227"))
    await second.start()

    async def follows(replica: Controller, address: str) -> None:
        await replica.until_settled()
        assert [vs["status"]["vip"] for vs in await replica.ask("vs")] == [address]

    await follows(second, "127.10.16.227")
    assert not (await second.said())["leads"]
    await first.kill()
    walk.apply(gateway(80, more=ADDRESSES))
    await walk.until(walk.shows(hello="127.10.16.232"), 20)
    assert (await second.said())["leads"]
    assert await walk.answers("127.10.16.232", 80) == 200
    await first.start()
    await follows(first, "127.10.16.232")
    assert not (await first.said())["leads"]
    await second.until_settled()
    vips = [line.split()[0] for line in walk.kubectl("get", "vsvips", "--no-headers").splitlines()]
    assert vips == ["127.10.16.232"]
    for one in (first, second):
        await one.stop()


async def test_a_service_of_both_families_says_both_addresses(walk: Walk) -> None:
    await walk.controller.start()
    address, _, number = walk.controller.endpoint.partition(":")
    text = SERVICE[: SERVICE.index("  labels:")] + SERVICE[SERVICE.index("spec:") :]
    text = text.replace("spec:", "spec:\n  ipFamilyPolicy: PreferDualStack", 1)
    text = text.replace("NAME", "both").replace("BACKEND_PORT", number)
    walk.apply(text.replace("BACKEND", address).replace("PORT", "80"))
    await walk.until(walk.shows(both="127.10.15.161,::1"))
    for one in ("127.10.15.161", "::1"):
        assert await walk.answers(one, 80) == 200
    vips = walk.kubectl("get", "vsvips", "--no-headers").split()
    assert {"127.10.15.161", "::1"} <= set(vips)
    events = walk.kubectl("get", "events", "--no-headers")
    assert "It is served at 127.10.15.161 and ::1." in events
    walk.kubectl("delete", "service", "both")
    await walk.until(lambda: not walk.kubectl("get", "vsvips", "--no-headers").strip())
