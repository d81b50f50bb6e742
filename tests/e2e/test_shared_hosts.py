"""A host and its owner, when Ingresses of other namespaces name it too: requests and handshakes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from e2e.running import Backend, Client, Running
from e2e.test_tls import House as Tls
from e2e.test_tls import pair

HOST = "shop.example.test"
SHARED = "l7: {fqdnReusePolicy: InterNamespaceAllowed}\n"
OURS, THEIRS = 200, 201


class Theirs(Backend):
    """The other tenant's application: a 201."""

    ANSWER = Backend.ANSWER.replace(b"200 OK", b"201 Created")


class House(Tls):
    """A running akocore with tenants shop and evil."""

    def __init__(self, running: Running, ports: dict[str, int]) -> None:
        super().__init__(running)
        self.ports = ports

    def ingress(self, namespace: str, name: str, *paths: str, tls: str = "", day: int = 1) -> None:
        """An Ingress for the host, with its own Service, made that day."""
        meta = {"name": name, "namespace": namespace}
        backend = {"service": {"name": name, "port": {"number": 80}}}
        rule = {"paths": [{"path": p, "pathType": "Prefix", "backend": backend} for p in paths]}
        items: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "Service", "metadata": meta}
            | {"spec": {"ports": [{"port": 80}]}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
            | {"metadata": {**meta, "labels": {"kubernetes.io/service-name": name}}}
            | {"addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}]}
            | {"ports": [{"port": self.ports[namespace]}]},
            {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress"}
            | {"metadata": {**meta, "creationTimestamp": f"2026-01-0{day}T00:00:00Z"}}
            | {
                "spec": {
                    "rules": [{"host": HOST, "http": rule}],
                    **({"tls": [{"hosts": [HOST], "secretName": tls}]} if tls else {}),
                }
            },
        ]
        self.running.write(f"{namespace}-{name}.json", {"kind": "List", "items": items})

    def certificate(self, namespace: str, *, good: bool = True) -> int:
        """Secret "cert" of a namespace; its serial number."""
        chain, key, serial = pair(HOST)
        data = {"tls.crt": chain if good else chain[:200], "tls.key": key}
        self.running.write(
            f"{namespace}-cert.json",
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "cert", "namespace": namespace},
                "type": "kubernetes.io/tls",
                "data": {part: base64.b64encode(text).decode() for part, text in data.items()},
            },
        )
        return serial

    async def says(self, name: str, reason: str) -> None:
        """Wait until an Ingress says a reason."""
        async with asyncio.timeout(20):
            while True:
                for item in await self.running.ask("ingress"):
                    if item["metadata"]["name"] == name and any(
                        one["reason"] == reason for one in item["status"]["conditions"]
                    ):
                        return
                await asyncio.sleep(0.02)

    async def events(self, of: str) -> set[str]:
        return {e["reason"] for e in await self.running.ask("events") if e["regarding"] == of}


@asynccontextmanager
async def asked_all_the_while(vip: str, *paths: str) -> AsyncIterator[list[int]]:
    """What the host answers to each of these paths, again and again."""
    client, answers = Client(), list[int]()

    async def ask() -> None:
        while True:
            for path in paths:
                answers.append(await client.get(vip, HOST, path))
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    try:
        yield answers
    finally:
        asking.cancel()
        client.close()


@pytest.fixture
def open_house(tmp_path: Path) -> Callable[[str], Any]:
    @asynccontextmanager
    async def opened(config: str) -> AsyncIterator[House]:
        loop = asyncio.get_running_loop()
        servers = {
            "shop": await loop.create_server(Backend, "127.0.0.1", 0),
            "evil": await loop.create_server(Theirs, "127.0.0.1", 0),
        }
        ports = {name: one.sockets[0].getsockname()[1] for name, one in servers.items()}
        running = Running(tmp_path, ports["shop"])
        running.config = f"defaults: {{shardSize: SMALL}}\n{config}"
        async with running:
            yield House(running, ports)
        for one in servers.values():
            one.close()

    return opened


async def test_nothing_of_a_host_changes_when_another_namespace_names_it(
    open_house: Callable[[str], Any],
) -> None:
    async with open_house("") as house:
        house.ingress("shop", "web", "/", day=1)
        vip = await house.vip(HOST)
        async with asked_all_the_while(vip, "/", "/login", "/login/now") as answers:
            house.certificate("evil")
            house.ingress("evil", "grab", "/login", "/", tls="cert", day=2)
            await house.says("grab", "HostClaimed")
            assert await house.handshake(vip, HOST) == (0, 0), "shop has no certificate"
            house.certificate("evil", good=False)
            house.ingress("evil", "again", "/login/now", tls="gone", day=3)
            await house.says("again", "SecretNotFound")
            seen = len(answers)
            async with asyncio.timeout(20):
                while len(answers) < seen + 30:
                    await asyncio.sleep(0.01)
        assert set(answers) == {OURS}
        await house.running.stop()
        await house.running.start()
        await house.says("grab", "HostClaimed")
        vip = await house.vip(HOST)
        client = Client()
        assert [await client.get(vip, HOST, path) for path in ("/", "/login")] == [OURS, OURS]
        (house.running.directory / "shop-web.json").unlink()  # now it is the next one's
        house.certificate("evil")
        async with asyncio.timeout(20):
            while (await house.handshake(vip, HOST))[1] != THEIRS:
                await asyncio.sleep(0.05)
        client.close()


async def test_a_shared_host_keeps_its_certificate_whatever_who_joined_has(
    open_house: Callable[[str], Any],
) -> None:
    async with open_house(SHARED) as house:
        serial = house.certificate("shop")
        house.ingress("shop", "web", "/", tls="cert", day=1)
        vip = await house.vip(HOST)
        await house.until_serial(vip, HOST, serial)
        async with asked_all_the_while(vip, "/") as answers:
            house.certificate("evil")
            house.ingress("evil", "blog", "/blog", tls="cert", day=2)
            await house.says("blog", "CertificateConflict")
            for good in (True, False):
                house.certificate("evil", good=good)
                for _ in range(10):
                    assert await house.handshake(vip, HOST) == (serial, OURS)
        assert set(answers) == {302}
        assert "HostJoined" in await house.events("Ingress/shop/web")
        assert "HostShared" in await house.events("Ingress/evil/blog")
        assert (await house.nacks()) == 0


async def test_a_challenge_is_answered_over_http_before_the_certificate_is_there(
    open_house: Callable[[str], Any],
) -> None:
    """As cert-manager has it: an Ingress of its own in the host's namespace, without tls."""
    async with open_house("") as house:
        house.ingress("shop", "web", "/", tls="cert", day=1)
        vip = await house.vip(HOST)
        challenge = "/.well-known/acme-challenge/token"
        house.ingress("shop", "solver", challenge, day=2)
        client = Client()
        async with asyncio.timeout(20):
            while await client.get(vip, HOST, challenge) != OURS:
                await asyncio.sleep(0.05)
        assert await client.get(vip, HOST, "/") == 302
        serial = house.certificate("shop")
        await house.until_serial(vip, HOST, serial)
        client.close()
