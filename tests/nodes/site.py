"""A cluster with akocore by its Helm chart, and what the tests look at of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from nodes.cluster import Nodes
from nodes.outside import CLIENT, PEER, Load, Outside, until
from nodes.workloads import backend, ingress

CHART = Path(__file__).parents[2] / "deploy" / "chart"
HOME = "akocore-system"
_VALUES = {
    "NetworkSettings": {"vipNetworkList": [{"networkName": "vips"}], "enableRHI": True},
    "networks": {
        "vips": {
            "subnet": "10.10.16.0/24",
            "vipRanges": [{"begin": "10.10.16.224", "end": "10.10.16.250"}],
            "bgp": {
                "localAs": 5000,
                "peers": [
                    {
                        "address": PEER,
                        "remoteAs": 6000,
                        "bfd": True,
                        "connectTimer": 1,
                        "keepaliveTimer": 3,
                        "holdTimer": 9,
                    }
                ],
            },
        }
    },
    "controller": {"leaseSeconds": 4, "moveGraceSeconds": 2},
}
GROUP = "se-group-critical-se"
"""The workload of the Service Engines."""
SETTING = """
apiVersion: akocore.io/v1alpha1
kind: ServiceEngineGroup
metadata: {name: se-group-critical}
spec:
  minSePerVs: 2
  pods: {drainSeconds: 10}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec:
  seGroup: {name: se-group-critical}
  network: {names: [vips], enableRhi: true}
  l7Settings: {shardSize: LARGE}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
---
apiVersion: networking.x-k8s.io/v1alpha1
kind: GatewayClass
metadata: {name: critical-gwc}
spec:
  controller: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
---
apiVersion: networking.x-k8s.io/v1alpha1
kind: Gateway
metadata: {name: l4-gw, namespace: default}
spec:
  gatewayClassName: critical-gwc
  listeners:
  - protocol: TCP
    port: 80
    routes:
      selector:
        matchLabels:
          ako.vmware.com/gateway-namespace: default
          ako.vmware.com/gateway-name: l4-gw
      group: v1
      kind: Service
"""
L7 = "hello.avi.iberia.local"
WHERE = {L7: "ingress/hello", "l4": "service/hello-l4"}
"""What the tests ask, and whose status says where."""
_CHOSEN = {
    "ako.vmware.com/gateway-namespace": "default",
    "ako.vmware.com/gateway-name": "l4-gw",
}


class Site:
    """``hosts``: who is served where, L7 and L4."""

    def __init__(self, nodes: Nodes, outside: Outside) -> None:
        self.nodes = nodes
        self.outside = outside
        self.hosts: dict[str, str] = {}

    def install(self, chart: Path, **more: Any) -> None:
        """Install the chart, or upgrade to it; until its controllers are ready."""
        values = self.outside.home / "values.json"
        values.write_bytes(orjson.dumps(_VALUES | more))
        self.nodes.helm(
            *("upgrade", "--install", "akocore", str(chart), "--namespace", HOME),
            *("--create-namespace", "--values", str(values), "--wait", "--timeout", "120s"),
        )

    def serve(self) -> None:
        """The walkthrough's application, by an Ingress and by a Gateway."""
        self.nodes.apply(SETTING, *backend("hello", 3), ingress("hello", L7, "critical-ic"))
        service = backend("hello-l4", 3)
        service[1]["metadata"]["labels"] = _CHOSEN
        service[1]["spec"]["type"] = "LoadBalancer"
        self.nodes.apply(*service)
        self.locate()

    def locate(self) -> None:
        """Until all is served where it says, and announced."""
        self.hosts = {
            name: until(lambda w=what: self.address(w), why=self.why)  # type: ignore[misc]
            for name, what in WHERE.items()
        }
        until(lambda: self.settled(2), 90, why=self.why)
        for name, address in self.hosts.items():
            until(lambda n=name, a=address: self.answers(n, a), why=self.why)  # type: ignore[misc]

    def answers(self, host: str, address: str) -> bool:
        """Whether the client gets an answer of a pod."""
        try:
            return '"pod"' in self.nodes.ask(address, host, CLIENT)
        except RuntimeError:
            return False

    def address(self, what: str) -> str:
        points = self.nodes.get(what)["status"].get("loadBalancer", {}).get("ingress", [])
        return str(points[0]["ip"]) if points else ""

    def load(self, kept: int = 0, *hosts: str) -> Load:
        """Of all, or just of these hosts."""
        return Load({h: a for h, a in self.hosts.items() if not hosts or h in hosts}, kept)

    def hand_over(self, on: bool) -> None:
        """Whether Service Engines hand flows over to each other, once it is so."""
        patch = orjson.dumps({"spec": {"flowHandover": on}}).decode()
        self.nodes.kubectl("patch", "segroup", "se-group-critical", "--type=merge", "-p", patch)
        until(lambda: all(self._rings(n) == on for n in self.engines().values()), why=self.why)

    def _rings(self, address: str) -> bool:
        """Whether the Service Engine of a node has rules to hand flows over."""
        node = int(address.rpartition(".")[2]) - 10
        return "akocore_handover" in self.nodes.on_node(node, "nft", "list", "tables")

    def engines(self) -> dict[str, str]:
        """Each ready pod of a Service Engine, and its address."""
        pods = self.pods("service-engine")
        return {p["metadata"]["name"]: p["status"]["podIP"] for p in pods if _is_ready(p)}

    def pods(self, component: str) -> list[dict[str, Any]]:
        label = f"app.kubernetes.io/component={component}"
        found: list[dict[str, Any]] = self.nodes.get("pods", "-n", HOME, "-l", label)["items"]
        return found

    def ready_endpoints(self, node: str) -> list[str]:
        """Of the applications, on a node, as the cluster has it."""
        return [
            address
            for one in self.nodes.get("endpointslices", "-n", "default")["items"]
            for endpoint in one["endpoints"] or ()
            if endpoint.get("nodeName") == node and endpoint["conditions"].get("ready")
            for address in endpoint["addresses"]
        ]

    def leader(self) -> str:
        """The pod that leads; "": none does."""
        lease = self.nodes.get("lease", "akocore", "-n", HOME)
        return str((lease["spec"].get("holderIdentity") or "").rpartition("_")[0])

    def settled(self, engines: int) -> bool:
        """Whether so many engines are there and ready, and the router has just these."""
        there, pods = self.engines(), self.pods("service-engine")
        hops = [self.outside.next_hops(address) for address in self.hosts.values()]
        same = all(hop == set(there.values()) for hop in hops)
        return len(there) == len(pods) == engines and same

    def rollout(self, workload: str) -> None:
        self.nodes.kubectl("rollout", "status", workload, "-n", HOME, "--timeout=240s")

    def why(self) -> str:
        """What there is, for a test that fails."""
        hops = {address: self.outside.next_hops(address) for address in self.hosts.values()}
        parts = [
            f"ready engines {self.engines()}, next hops {hops}",
            self.nodes.kubectl("get", "pods", "-A", "-o", "wide"),
            self.nodes.kubectl("get", "ingress,services,vs,se", "-o", "wide"),
        ]
        for pod in (*self.pods("controller"), *self.pods("service-engine")):
            name = pod["metadata"]["name"]
            words = ("logs", "-n", HOME, name, "--tail=25")
            parts.append(f"{name}:\n{self.nodes.kubectl(*words, allow=(0, 1))}")
        return "\n".join(parts)


def _is_ready(pod: dict[str, Any]) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
