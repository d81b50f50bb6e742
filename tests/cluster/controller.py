"""``akocore controller`` as a process of its own, over a real control plane."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from akocore.cli.dummy import manifests
from cluster.control_plane import ControlPlane
from e2e.running import Client, Running

TABLE = (
    "-o=custom-columns=HOSTNAME:.status.loadBalancer.ingress[0].hostname,"
    "AVI-VS-IP:.status.loadBalancer.ingress[0].ip"
)
LARGE = [{1, 9, 14}, {2, 17}, {3, 16}, {4, 11, 19}, {5, 10, 18}, {6, 13}, {8, 15, 20}, {7, 12}]
MEDIUM = [{1, 5, 9, 10, 14, 18}, {2, 6, 13, 17}, {3, 7, 12, 16}, {4, 8, 11, 15, 19, 20}]
OBJECTS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.225, end: 127.10.16.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [vips]}, l7Settings: {shardSize: LARGE}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
"""


class Controller(Running):
    """One replica.  ``kubeconfig``: its way to the API server; ``flags``: more of its own."""

    def __init__(self, scratch: Path, plane: ControlPlane, endpoint: str) -> None:
        scratch.mkdir(exist_ok=True)
        super().__init__(scratch, 0)
        self.plane = plane
        self.kubeconfig = plane.controllers_kubeconfig
        self.endpoint = endpoint
        self.config = "moveGraceSeconds: 1\n"
        self.flags: list[str] = []

    def source(self) -> list[str]:
        return ["controller", "--kubeconfig", str(self.kubeconfig), *self.flags]

    def apply(self, text: str | bytes) -> None:
        self.plane.kubectl("apply", "-f", "-", stdin=text)

    def app_items(self, number: int, ingress_class: str | None) -> list[dict[str, Any]]:
        return manifests("hello", number, ingress_class=ingress_class, endpoint=self.endpoint)

    def apps(self, count: int, ingress_class: str | None, first: int = 1) -> None:
        items: list[dict[str, Any]] = []
        for i in range(first, first + count):
            items += self.app_items(i, ingress_class)
        self.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def shown(self) -> dict[int, str]:
        """hello's number → address, as kubectl prints them."""
        lines = self.plane.kubectl("get", "ingress", TABLE, "--no-headers").splitlines()
        rows = [line.split() for line in lines]
        return {
            int(host.partition(".")[0].removeprefix("hello")): address
            for host, address in rows
            if address != "<none>"
        }

    def on(self, prefix: str, count: int) -> bool:
        """Whether ``count`` hosts are shown, all of them on addresses of this prefix."""
        shown = self.shown().values()
        return len(shown) == count and all(address.startswith(prefix) for address in shown)

    def groups(self) -> list[set[int]]:
        out: dict[str, set[int]] = {}
        for number, address in self.shown().items():
            out.setdefault(address, set()).add(number)
        return sorted(out.values(), key=min)

    async def until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(true):
            if time.monotonic() > deadline:
                pytest.fail(f"not true after {seconds} s; log: {self.log.read_text()[-3000:]}")
            await asyncio.sleep(0.05)

    async def said(self) -> dict[str, Any]:
        """What the process says of itself; {} while it starts."""
        items = await self.ask("akocore")
        return items[0]["status"] if items else {}

    async def until_ready(self, seconds: float = 60) -> None:
        """Wait until it has read the cluster and leads."""
        async with asyncio.timeout(seconds):
            while not (await self.said()).get("leads"):
                await asyncio.sleep(0.05)

    async def until_settled(self, seconds: float = 60) -> None:
        """Wait until nothing moves, nothing is due and every engine has everything."""
        deadline, quiet = time.monotonic() + seconds, 0
        while quiet < 3:
            said, engines = await self.said(), await self.engines()
            if time.monotonic() > deadline:
                pytest.fail(f"not settled after {seconds} s: {said} {engines}")
            waits = ("moving", "statusWaiting", "eventsWaiting")
            still = bool(said) and not any(said[name] for name in waits)
            fresh = [e["upToDate"] for e in engines.values()]
            there = bool(fresh) == bool(said.get("vips"))
            quiet = quiet + 1 if still and there and all(fresh) else 0
            await asyncio.sleep(0.15)

    def size(self, size: str) -> None:
        patch = json.dumps({"spec": {"l7Settings": {"shardSize": size}}})
        self.plane.kubectl("patch", "ais", "critical.infra", "--type=merge", "-p", patch)

    async def all_answer(self, count: int) -> None:
        """Every host answers 200; endpoints come by a watch of their own, perhaps a bit later."""
        client, shown = Client(), self.shown()
        assert len(shown) == count
        deadline = time.monotonic() + 60
        while True:
            answers = {
                n: await client.get(a, f"hello{n}.avi.iberia.local") for n, a in shown.items()
            }
            if set(answers.values()) == {200} or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        client.close()
        assert set(answers.values()) == {200}, (answers, shown, self.log.read_text()[-3000:])

    def versions(self) -> dict[str, str]:
        items = json.loads(self.plane.kubectl("get", "ingress", "-o", "json"))["items"]
        return {i["metadata"]["name"]: i["metadata"]["resourceVersion"] for i in items}


def install(plane: ControlPlane) -> None:
    """``akocore install``, and its roles for the controller's user."""
    command = [sys.executable, "-m", "akocore", "install"]
    subprocess.run([*command, "--kubeconfig", plane.kubeconfig], check=True)
    plane.bind_controller()
