"""``akocore controller --engines external``: one of several, for engines that come to them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from cluster.control_plane import ControlPlane
from cluster.controller import Controller
from engines.authority import Authority

LEASE_S = 3


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


class Replica(Controller):
    """One replica, with its own state; engines find it at `at`."""

    def __init__(
        self, scratch: Path, plane: ControlPlane, endpoint: str, authority: Authority
    ) -> None:
        super().__init__(scratch, plane, endpoint)
        self.at = f"127.0.0.1:{_free_port()}"
        pair = authority.issue(scratch.name, scratch.name, ips=["127.0.0.1"])
        self.flags = [
            *("--engines", "external", "--xds-listen", self.at),
            *("--xds-cert", str(pair.certificate), "--xds-key", str(pair.key)),
            *("--xds-client-ca", str(authority.ca), "--lease-duration", str(LEASE_S)),
        ]

    async def has(self, *names: str) -> bool:
        """Whether just these engines are connected to it, and have all that they are to have."""
        rows = {n: e for n, e in (await self.engines()).items() if e["state"] == "up"}
        here = {n for n, e in rows.items() if not e["controller"] and e["upToDate"]}
        return here == set(names)

    async def leads(self) -> bool:
        return bool((await self.said()).get("leads"))

    def virtual_services(self) -> dict[str, dict[str, Any]]:
        """Status of each virtual service, as kubectl shows it."""
        items = json.loads(self.plane.kubectl("get", "vs", "-o", "json"))["items"]
        return {item["status"]["name"]: item["status"] for item in items}

    def replicas(self) -> dict[str, dict[str, Any]]:
        """What each replica tells of itself, by identity."""
        items = json.loads(self.plane.kubectl("get", "replicas", "-o", "json"))["items"]
        return {item["status"]["identity"]: item["status"] for item in items}

    def service_engines(self) -> dict[str, dict[str, Any]]:
        items = json.loads(self.plane.kubectl("get", "se", "-o", "json"))["items"]
        return {item["metadata"]["name"]: item["status"] for item in items}
