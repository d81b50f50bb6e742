"""Which Service Engines are given which private keys, asked as an engine asks: by a stream."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.gateway_cluster import secret_name
from akocore.engines.envoy.resources import SDS
from akocore.kube.objects import KINDS, Change, decode
from akocore.place.state import State
from akocore.reconcile import Move, Reconciler

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
HOME, GUEST = "Default-Group", "guest-group"

INFRA = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.76.0/24, vipRanges: [{begin: 127.10.76.225, end: 127.10.76.254}]}
---
apiVersion: akocore.io/v1alpha1
kind: ServiceEngineGroup
metadata: {name: guest-group}
spec: {}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: shop}
spec: {network: {names: [vips]}, l7Settings: {shardSize: SMALL}}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: guest}
spec: {network: {names: [vips]}, l7Settings: {shardSize: SMALL}, seGroup: {name: guest-group}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: shop}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: shop}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: guest}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: guest}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: shop}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: shop}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: guest}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: guest}
"""

INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME, namespace: shop}
spec:
  ingressClassName: CLASS
  rules: [{host: "HOST"}]
  tls: [{hosts: ["HOST"], secretName: NAME}]
"""

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: CLASS
  listeners:
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: front}]}}
"""


def made(name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(who).issuer_name(who)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=30))
    return (
        builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


class Engine:
    """A stream of one who says that he is an engine; ``told``: name → key, None: there is none."""

    def __init__(self, call: Any, name: str, group: str) -> None:
        self.told: dict[str, bytes | None] = {}
        self._call = call
        self._node = {"id": name, "cluster": group}

    async def ask(self, *names: str) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            node=self._node, type_url=SDS, resource_names_subscribe=names
        )
        await self._call.write(request)

    async def listen(self) -> None:
        while (answer := await self._call.read()) is not grpc.aio.EOF:
            for one in answer.resources:
                found = secret_pb2.Secret()
                one.resource.Unpack(found)
                self.told[one.name] = found.tls_certificate.private_key.inline_bytes
            for name in answer.removed_resources:
                self.told[name] = None
            ack = discovery_pb2.DeltaDiscoveryRequest(type_url=SDS, response_nonce=answer.nonce)
            await self._call.write(ack)

    async def until(self, name: str, key: bytes | None) -> None:
        async with asyncio.timeout(10):
            while self.told.get(name, b"unheard") != key:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


class World:
    """A reconciler, and engines of any group on its socket."""

    def __init__(self, directory: Path) -> None:
        self.keys: dict[str, bytes] = {}
        self.moves: list[Move] = []
        self.closing: list[Callable[[], None]] = []
        self.ads = AdsServer(directory / "xds.sock", lambda _group: None)
        self.state = State(directory)
        self.at = Reconciler(
            Config(),
            self.state,
            self.ads,
            now=lambda: datetime.now(UTC),
            on_move=self.moves.append,
            on_close=self.closing.append,
        )

    def apply(self, text: str) -> None:
        changes = []
        for body in yaml.safe_load_all(text):
            if (struct := KINDS.get((body["apiVersion"], body["kind"]))) is not None:
                if struct.NAMESPACED:
                    body["metadata"].setdefault("namespace", "shop")
                obj = decode(body, struct)
                changes.append(Change(obj.stored(), obj.key, obj))
        self.at.apply(changes)

    def secret(self, name: str) -> None:
        pem = made(name)
        self.keys[name] = pem[1]
        crt, key = (base64.b64encode(part).decode() for part in pem)
        self.apply(
            f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: shop}}\n"
            f"type: kubernetes.io/tls\ndata: {{tls.crt: {crt}, tls.key: {key}}}\n"
        )

    def ingress(self, name: str, host: str, class_: str = "shop") -> None:
        text = INGRESS.replace("NAME", name).replace("HOST", host).replace("CLASS", class_)
        self.apply(text)

    @asynccontextmanager
    async def engine(self, name: str, group: str) -> AsyncIterator[Engine]:
        async with grpc.aio.insecure_channel(f"unix:{self.ads.socket}") as channel:
            method: Any = channel.stream_stream(
                ADS,
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
            )
            one = Engine(method(), name, group)
            listening = asyncio.create_task(one.listen())
            yield one
            listening.cancel()


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    with TemporaryDirectory(prefix="ako-") as short:
        made = World(Path(short))
        made.apply(INFRA)
        await made.ads.start(made.ads.service())
        made.ads.open()
        yield made
        await made.ads.stop()
        made.state.close()


async def test_an_engine_is_given_no_key_of_another_group_whatever_it_asks_for(
    world: World,
) -> None:
    for name in ("exact", "wild", "any", "front", "own"):
        world.secret(name)
    world.ingress("exact", "pay.shop.test")
    world.ingress("wild", "*.shop.test")
    world.apply(GATEWAY.replace("CLASS", "shop"))
    world.ingress("own", "own.guest.test", "guest")
    names = ["pay.shop.test", "PAY.shop.test.", "x.shop.test", "*.shop.test", "pay.shop.test"]
    names += [secret_name("shop/front"), secret_name("shop/exact"), secret_name("shop/own"), "*"]
    async with world.engine("se-9", GUEST) as guest, world.engine("se-1", HOME) as mine:
        for engine in (guest, mine):
            await engine.ask(*names, "own.guest.test")
        await guest.until("own.guest.test", world.keys["own"])
        assert set(guest.told) == {*names, "own.guest.test"}
        assert {name for name, key in guest.told.items() if key} == {"own.guest.test"}
        await mine.until("pay.shop.test", world.keys["exact"])
        assert mine.told["x.shop.test"] == world.keys["wild"]
        assert mine.told[secret_name("shop/front")] == world.keys["front"]
        # Nobody names these two outright, and the third is the other group's.
        assert mine.told[secret_name("shop/exact")] is None
        assert mine.told[secret_name("shop/own")] is None
        assert mine.told["own.guest.test"] is None


async def test_nor_is_it_given_one_when_a_secret_is_renewed(world: World) -> None:
    world.secret("exact")
    world.secret("front")
    world.secret("own")
    world.ingress("exact", "pay.shop.test")
    world.apply(GATEWAY.replace("CLASS", "shop"))
    world.ingress("own", "own.guest.test", "guest")
    names = ["pay.shop.test", secret_name("shop/front")]
    async with world.engine("se-9", GUEST) as guest, world.engine("se-1", HOME) as mine:
        for engine in (guest, mine):
            await engine.ask(*names, "own.guest.test")
            await engine.until(names[0], world.keys["exact"] if engine is mine else None)
        for name in ("exact", "front", "own"):
            world.secret(name)
        await mine.until("pay.shop.test", world.keys["exact"])
        await mine.until(secret_name("shop/front"), world.keys["front"])
        await guest.until("own.guest.test", world.keys["own"])
        assert [guest.told[name] for name in names] == [None, None]


async def test_a_host_that_moves_has_its_certificate_in_both_groups_until_it_has_left_one(
    world: World,
) -> None:
    world.secret("exact")
    world.ingress("exact", "pay.shop.test")
    key = world.keys["exact"]
    async with world.engine("se-9", GUEST) as guest, world.engine("se-1", HOME) as mine:
        await guest.ask("pay.shop.test")
        await guest.until("pay.shop.test", None)
        await mine.ask("pay.shop.test")
        await mine.until("pay.shop.test", key)
        world.ingress("exact", "pay.shop.test", "guest")
        await guest.until("pay.shop.test", key)
        async with world.engine("se-2", HOME) as late:  # clients still come to the old address
            await late.ask("pay.shop.test")
            await late.until("pay.shop.test", key)
        world.secret("exact")
        for engine in (guest, mine):
            await engine.until("pay.shop.test", world.keys["exact"])
        world.at.finish_move(world.moves[-1])
        for then in world.closing:
            then()
        await mine.until("pay.shop.test", None)
        assert guest.told["pay.shop.test"] == world.keys["exact"]


async def test_a_certificate_of_a_gateway_follows_it_to_another_group(world: World) -> None:
    world.secret("front")
    world.apply(GATEWAY.replace("CLASS", "shop"))
    name, key = secret_name("shop/front"), world.keys["front"]
    async with world.engine("se-9", GUEST) as guest, world.engine("se-1", HOME) as mine:
        await guest.ask(name)
        await guest.until(name, None)
        await mine.ask(name)
        await mine.until(name, key)
        world.apply(GATEWAY.replace("CLASS", "guest"))
        await guest.until(name, key)
        world.secret("front")
        for engine in (guest, mine):
            await engine.until(name, world.keys["front"])
        world.at.finish_move(world.moves[-1])
        for then in world.closing:
            then()
        async with world.engine("se-2", HOME) as late:
            await late.ask(name)
            await late.until(name, None)


async def test_anothers_wildcard_does_not_speak_for_a_host(world: World) -> None:
    world.secret("wild")
    world.secret("guest")
    world.ingress("wild", "*.shop.test")
    world.ingress("guest", "a.shop.test", "guest")
    async with world.engine("se-9", GUEST) as guest, world.engine("se-1", HOME) as mine:
        await guest.ask("a.shop.test", "b.shop.test")
        await guest.until("a.shop.test", world.keys["guest"])
        await guest.until("b.shop.test", None)
        await mine.ask("a.shop.test")
        await mine.until("a.shop.test", world.keys["wild"])
