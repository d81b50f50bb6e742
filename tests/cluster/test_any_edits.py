"""Whatever is edited in whatever order, the world ends as a clean boot would make it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from akocore.kube.api import ApiError, ApiServer, resources
from akocore.kube.credentials import Credentials
from cluster.control_plane import ADMIN, ControlPlane
from cluster.controller import OBJECTS, Controller
from cluster.world import assert_as_on_a_clean_boot
from e2e.test_tls import pair

pytestmark = pytest.mark.real

_T = TypeVar("_T")
APPS = st.integers(1, 9)
CLASSES = st.sampled_from(["critical-ic", "critical-ic", "avi-lb", None, "nowhere"])
SIZES = st.sampled_from(["LARGE", "MEDIUM", "SMALL", "DEDICATED", "HUGE"])
NETWORKS = st.sampled_from(["vips", "default", "nowhere"])
ENDS = st.sampled_from(["127.10.16.254", "127.10.16.229", "127.10.17.3", "127.10.16.1"])
GATEWAYS = st.sampled_from(["gw1", "gw2"])
ADDRESSES = st.sampled_from(["", "", "127.10.16.226", "127.10.16.251", "127.10.99.1"])
L4_PORTS = st.lists(st.sampled_from([("TCP", 90), ("UDP", 90), ("TCP", 91)]), unique=True)
PATHS = st.sampled_from(["/", "/shop", "/shop/cart", "no-slash"])


class World(RuleBasedStateMachine):
    """One controller, and a user who edits without pause."""

    plane: ControlPlane
    scratch: Path
    endpoint: str
    lives = 0

    def __init__(self) -> None:
        super().__init__()
        World.lives += 1
        self.runner = asyncio.Runner()
        self.controller = Controller(self.scratch / str(World.lives), self.plane, self.endpoint)
        found = Credentials(
            server=f"https://127.0.0.1:{self.plane.port}",
            authorization=f"Bearer {ADMIN}",
            verify=False,
        )

        async def credentials() -> Credentials:
            return found

        self.api = ApiServer(credentials)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        self.run(self.api.__aenter__())
        self.controller.apply(OBJECTS)
        self.run(self.controller.start())
        self.run(self.controller.until_ready())

    def put(self, item: dict[str, Any]) -> None:
        """Server-side apply; what the API server itself refuses changes nothing."""
        resource = resources()[item["kind"]]
        meta = item["metadata"]
        namespace = "default" if resource.kind.NAMESPACED else ""
        try:
            self.run(self.api.apply(resource.path(namespace, meta["name"]), item, "user"))
        except ApiError as err:
            if err.code not in (400, 422):
                raise

    def drop(self, kind: str, name: str) -> None:
        namespace = "default" if resources()[kind].kind.NAMESPACED else ""
        try:
            self.run(self.api.request("DELETE", resources()[kind].path(namespace, name)))
        except ApiError as err:
            if err.code != 404:
                raise

    # ── applications ────────────────────────────────────────────────────────────────────────

    @rule(n=APPS, host=APPS, cls=CLASSES, path=PATHS, tls=st.booleans())
    def app(self, n: int, host: int, cls: str | None, path: str, tls: bool) -> None:
        """An application, perhaps at the host of another."""
        items = self.controller.app_items(n, cls)
        rule_ = items[-1]["spec"]["rules"][0]
        rule_["host"] = f"hello{host}.avi.iberia.local"
        rule_["http"]["paths"][0]["path"] = path
        if tls:
            items[-1]["spec"]["tls"] = [{"hosts": [rule_["host"]], "secretName": f"pair{host % 3}"}]
        for item in items:
            self.put(item)

    @rule(n=APPS, kind=st.sampled_from(["Ingress", "Service", "EndpointSlice"]))
    def take_away(self, n: int, kind: str) -> None:
        self.drop(kind, f"hello{n}")

    @rule(n=st.integers(0, 2), good=st.sampled_from([True, False, None]))
    def secret(self, n: int, good: bool | None) -> None:
        if good is None:
            self.drop("Secret", f"pair{n}")
            return
        chain, key, _ = pair("*.avi.iberia.local")
        data = {"tls.crt": chain.decode(), "tls.key": key.decode() if good else "no key"}
        self.put(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": f"pair{n}"},
                "stringData": data,
            }
        )

    # ── L4 ──────────────────────────────────────────────────────────────────────────────────

    @rule(setting=st.sampled_from(["critical.infra", "nowhere", None]), ours=st.booleans())
    def gateway_class(self, setting: str | None, ours: bool) -> None:
        spec: dict[str, Any] = {
            "controller": "ako.vmware.com/avi-lb" if ours else "example.com/another"
        }
        if setting is not None:
            kind = {"group": "ako.vmware.com", "kind": "AviInfraSetting"}
            spec["parametersRef"] = {**kind, "name": setting}
        self.put(
            {
                "apiVersion": "networking.x-k8s.io/v1alpha1",
                "kind": "GatewayClass",
                "metadata": {"name": "critical-gwc"},
                "spec": spec,
            }
        )

    @rule(name=GATEWAYS, ports=L4_PORTS, address=ADDRESSES, labels=GATEWAYS)
    def gateway(self, name: str, ports: list[tuple[str, int]], address: str, labels: str) -> None:
        chosen = {
            "ako.vmware.com/gateway-namespace": "default",
            "ako.vmware.com/gateway-name": labels if ports[1:] else name,
        }
        routes = {"group": "v1", "kind": "Service", "selector": {"matchLabels": chosen}}
        self.put(
            {
                "apiVersion": "networking.x-k8s.io/v1alpha1",
                "kind": "Gateway",
                "metadata": {"name": name},
                "spec": {
                    "gatewayClassName": "critical-gwc",
                    "addresses": [{"value": address}] if address else [],
                    "listeners": [
                        {"protocol": protocol, "port": port, "routes": routes}
                        for protocol, port in ports
                    ],
                },
            }
        )

    @rule(n=APPS, ports=L4_PORTS, gateway=st.sampled_from(["gw1", "gw2", ""]), shared=st.booleans())
    def balanced(self, n: int, ports: list[tuple[str, int]], gateway: str, shared: bool) -> None:
        """A Service of type LoadBalancer, and perhaps no server behind it."""
        service, *rest = self.controller.app_items(n, None)
        labels = {
            "ako.vmware.com/gateway-namespace": "default",
            "ako.vmware.com/gateway-name": gateway,
        }
        meta = {"name": f"hello{n}", "labels": labels if gateway else {}}
        if shared:
            meta["annotations"] = {"ako.vmware.com/enable-shared-vip": "front"}
        listed = [
            {"name": f"{protocol.lower()}-{port}", "protocol": protocol, "port": port}
            for protocol, port in ports
        ]
        spec = {"type": "LoadBalancer", "ports": [*service["spec"]["ports"], *listed]}
        self.put({**service, "metadata": meta, "spec": spec})
        for item in rest:
            if item["kind"] == "EndpointSlice":
                self.put(item)

    @rule(name=GATEWAYS)
    def no_gateway(self, name: str) -> None:
        self.drop("Gateway", name)

    # ── infrastructure ──────────────────────────────────────────────────────────────────────

    @rule(size=SIZES, network=NETWORKS)
    def setting(self, size: str, network: str) -> None:
        spec = {"network": {"names": [network]}, "l7Settings": {"shardSize": size}}
        self.put(
            {
                "apiVersion": "ako.vmware.com/v1beta1",
                "kind": "AviInfraSetting",
                "metadata": {"name": "critical.infra"},
                "spec": spec,
            }
        )

    @rule()
    def no_setting(self) -> None:
        self.drop("AviInfraSetting", "critical.infra")

    @rule(end=ENDS)
    def network(self, end: str) -> None:
        """Wide, narrow, out of its subnet, or the wrong way round."""
        ranges = [{"begin": "127.10.16.225", "end": end}]
        self.put(
            {
                "apiVersion": "akocore.io/v1alpha1",
                "kind": "Network",
                "metadata": {"name": "vips"},
                "spec": {"subnet": "127.10.16.0/24", "vipRanges": ranges},
            }
        )

    @rule(default=st.booleans())
    def default_class(self, default: bool) -> None:
        body = {
            "metadata": {
                "annotations": {"ingressclass.kubernetes.io/is-default-class": str(default).lower()}
            }
        }
        path = resources()["IngressClass"].path(name="avi-lb")
        kind = "application/merge-patch+json"
        self.run(self.api.request("PATCH", path, None, orjson.dumps(body), kind))

    # ── faults ──────────────────────────────────────────────────────────────────────────────

    @rule(what=st.sampled_from(["rest", "rest", "think", "sleep", "kill", "kill an engine"]))
    def fault(self, what: str) -> None:
        """A pause of some length, or a crash."""
        match what:
            case "kill":
                self.run(self.controller.kill())
                self.run(self.controller.start())
            case "kill an engine":
                for engine in self.run(self.controller.engines()).values():
                    if engine["pid"]:
                        os.kill(engine["pid"], signal.SIGKILL)
                        break
            case _:
                self.run(asyncio.sleep({"rest": 0.05, "think": 0.5}.get(what, 2.0)))

    def teardown(self) -> None:
        try:
            self.run(assert_as_on_a_clean_boot(self.controller))
        finally:
            self.run(self.controller.stop())
            self.run(self.api.__aexit__())
            self.runner.close()
            self.plane.empty()
            self.plane.kubectl(
                *("annotate", "ingressclass", "avi-lb", "--overwrite"),
                "ingressclass.kubernetes.io/is-default-class=true",
            )


def test_any_edits(plane: ControlPlane, tmp_path: Path, endpoint: str) -> None:
    """``AKOCORE_EDITS``: how many histories to try; the same ones each time unless it is set."""
    World.plane, World.scratch, World.endpoint = plane, tmp_path, endpoint
    wanted = os.environ.get("AKOCORE_EDITS")
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        World,
        settings=settings(
            max_examples=int(wanted or 4),
            stateful_step_count=40,
            deadline=None,
            derandomize=wanted is None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
