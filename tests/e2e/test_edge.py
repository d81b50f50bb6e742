"""Clients that are slow, idle or too many, at every kind of door: each is cut, none in time is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import Struct

from akocore import status, status_gateway
from e2e.house import House, house_over
from e2e.test_tls import pair

SETTING = """
apiVersion: akocore.io/v1alpha1
kind: ServiceEngineGroup
metadata: {name: alone}
spec: {minSePerVs: 1}
---
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.79.0/24, vipRanges: [{begin: 127.10.79.225, end: 127.10.79.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: edge}
spec:
  seGroup: {name: alone}
  network: {names: [vips]}
  l7Settings: {shardSize: SMALL}
  clientLimits: LIMITS
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: critical-ic}
spec:
  controller: ako.vmware.com/avi-lb
  parameters: {apiGroup: ako.vmware.com, kind: AviInfraSetting, name: edge}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: avi-lb}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: edge}
"""
SHORT = (
    "{handshakeSeconds: 1, headersSeconds: 1, requestSeconds: 3, idleSeconds: 2,"
    " streamIdleSeconds: 2, tcpIdleSeconds: 2}"
)
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: pair}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: gw}
spec:
  parentRefs: [{name: web}]
  hostnames: [secure.example.test]
  rules: [{backendRefs: [{name: plain, port: 80}], timeouts: TIMEOUTS}]
"""
L4 = """
apiVersion: v1
kind: Service
metadata: {name: NAME, annotations: {aviinfrasetting.ako.vmware.com/name: edge}}
spec: {type: LoadBalancer, ports: [{port: 7000, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, labels: {kubernetes.io/service-name: NAME}}
addressType: IPv4
ports: [{port: BACKEND}]
endpoints: [{addresses: [127.0.0.1]}]
"""
HOST = "secure.example.test"


_open: set[asyncio.StreamWriter] = set()


async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that waits for a whole body, and says nothing by itself on a WebSocket."""
    _open.add(writer)
    try:
        await _answer(reader, writer)
    finally:
        _open.discard(writer)
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            lines = head.lower().decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            if "upgrade" in headers:
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\n"
                    b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
                )
                while data := await reader.read(1000):
                    writer.write(data)
                return
            await reader.readexactly(int(headers.get("content-length", "0")))
            path = lines[0].split()[1]
            if path == "/endless":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()
            told = f"{path} {' '.join(sorted(headers))}".encode()
            answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(told), told)
            writer.write(answer)


class Doors(Struct):
    """Where the house lets clients in: (address, port)."""

    house: House
    ingress: tuple[str, int] = ("", 0)
    ingress_tls: tuple[str, int] = ("", 0)
    gateway: tuple[str, int] = ("", 0)
    gateway_tls: tuple[str, int] = ("", 0)
    l4: tuple[str, int] = ("", 0)

    def limits(self, text: str) -> None:
        self.house.write("setting.yaml", SETTING.replace("LIMITS", text))


def _l4_address(house: House, name: str) -> str:
    at = house.serve.reconciler
    for service in at.placement.services.values():
        if service.listeners and name in service.name and service.homes:
            return service.homes[-1].address
    return ""


@contextlib.asynccontextmanager
async def doors_over(tmp_path: Path, limits: str) -> AsyncIterator[Doors]:
    server = await asyncio.start_server(patient, "127.0.0.1", 0)
    async with house_over(tmp_path) as house:
        house.backend = server.sockets[0].getsockname()[1]
        out = Doors(house)
        out.limits(limits)
        house.app("plain", "plain.example.test")
        house.app("secure", HOST, tls="pair")
        chain, key, _ = pair(HOST)
        data = {"tls.crt": chain, "tls.key": key}
        rows = "".join(f"  {k}: {base64.b64encode(v).decode()}\n" for k, v in data.items())
        house.write(
            "pair.yaml",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: pair}\n"
            f"type: kubernetes.io/tls\ndata:\n{rows}",
        )
        house.write("gateway.yaml", GATEWAY.replace("TIMEOUTS", "{}"))
        house.write("l4.yaml", L4.replace("NAME", "raw").replace("BACKEND", str(house.backend)))

        def vip() -> str:
            said = status_gateway.gateway(house.serve.reconciler, "default/web")
            return said.addresses[0] if said is not None and said.addresses else ""

        await house.until(
            lambda: bool(
                {"plain.example.test", HOST} <= house.addresses().keys()
                and vip()
                and _l4_address(house, "raw")
            )
        )
        addresses = house.addresses()
        out.ingress = addresses["plain.example.test"], 80 + house.offset
        out.ingress_tls = addresses[HOST], 443 + house.offset
        out.gateway = vip(), 80 + house.offset
        out.gateway_tls = vip(), 443 + house.offset
        out.l4 = _l4_address(house, "raw"), 7000 + house.offset
        for place in (out.ingress, out.gateway):
            await until(lambda place=place: served(place))
        for place in (out.ingress_tls, out.gateway_tls):
            await until(lambda place=place: served(place, tls=True))
        await until(lambda: served(out.l4))
        yield out
    server.close()
    for writer in list(_open):
        writer.close()
    await asyncio.sleep(0.1)


@pytest_asyncio.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with doors_over(tmp_path, SHORT) as made:
        yield made


@pytest_asyncio.fixture
async def doors_unset(tmp_path: Path) -> AsyncIterator[Doors]:
    """With the limits that there are when nobody says any."""
    async with doors_over(tmp_path, "{}") as made:
        yield made


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not await true():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.05)


def trusting(*alpn: str) -> ssl.SSLContext:
    out = ssl.create_default_context()
    out.check_hostname, out.verify_mode = False, ssl.CERT_NONE
    if alpn:
        out.set_alpn_protocols(list(alpn))
    return out


class Client:
    """One connection; closed by who leaves ``async with``."""

    def __init__(self, place: tuple[str, int], *, tls: bool = False) -> None:
        self._place, self._tls = place, tls
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Client:
        more = {"ssl": trusting(), "server_hostname": HOST} if self._tls else {}
        self.reader, self.writer = await asyncio.open_connection(*self._place, **more)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, text: str) -> None:
        self.writer.write(text.encode())

    async def ask(self, host: str, path: str = "/", more: str = "") -> tuple[int, str]:
        """(status, what the endpoint saw); (0, ""): closed."""
        try:
            self.send(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n")
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = head.partition("content-length: ")[2].split("\r\n")[0]
            body = await self.reader.readexactly(int(length or 0))
            return int(head.split()[1]), head + body.decode()
        except (OSError, asyncio.IncompleteReadError):
            return 0, ""

    async def closed_after(self, within_s: float = 12) -> float:
        """Seconds until it is closed from the other side."""
        began = time.monotonic()
        async with asyncio.timeout(within_s):
            with contextlib.suppress(OSError):
                while await self.reader.read(1000):
                    pass
        return time.monotonic() - began


async def served(place: tuple[str, int], *, tls: bool = False) -> bool:
    host = "plain.example.test" if not tls else HOST
    try:
        async with Client(place, tls=tls) as client:
            return (await client.ask(host))[0] in (200, 404)
    except OSError:
        return False


# ── slow clients ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["ingress", "ingress_tls", "gateway", "gateway_tls", "l4"])
async def test_who_connects_and_says_nothing_is_cut(doors: Doors, door: str) -> None:
    async with Client(getattr(doors, door)) as client:
        assert await client.closed_after() > 0.5


@pytest.mark.parametrize("door", ["ingress_tls", "gateway_tls"])
async def test_who_stops_in_the_middle_of_a_handshake_is_cut(doors: Doors, door: str) -> None:
    outgoing = ssl.MemoryBIO()
    hello = trusting().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    async with Client(getattr(doors, door)) as client:
        client.writer.write(outgoing.read()[:60])
        assert await client.closed_after() > 0.5


@pytest.mark.parametrize("door", ["ingress", "gateway"])
async def test_who_dribbles_a_header_is_cut(doors: Doors, door: str) -> None:
    async with Client(getattr(doors, door)) as client:

        async def dribble() -> None:
            client.send(f"GET / HTTP/1.1\r\nhost: {HOST}\r\nx-slow: ")
            while True:
                client.send("a")
                await asyncio.sleep(0.2)

        task = asyncio.create_task(dribble())
        assert await client.closed_after() > 0.5
        task.cancel()


@pytest.mark.parametrize("door", ["ingress", "gateway"])
async def test_who_dribbles_a_body_is_cut(doors: Doors, door: str) -> None:
    host = "plain.example.test" if door == "ingress" else HOST
    async with Client(getattr(doors, door)) as client:

        async def dribble() -> None:
            client.send(f"POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100\r\n\r\n")
            while True:
                client.send("a")
                await asyncio.sleep(0.5)

        task = asyncio.create_task(dribble())
        assert await client.closed_after() > 2.5
        task.cancel()


async def test_who_is_slow_but_in_time_is_served(doors: Doors) -> None:
    async with Client(doors.ingress) as client:
        await asyncio.sleep(1.5)  # longer than headers may take, which have not begun
        client.send("POST / HTTP/1.1\r\nhost: plain.exam")
        await asyncio.sleep(0.3)
        client.send("ple.test\r\ncontent-length: 4\r\n\r\n")
        for _ in range(4):
            await asyncio.sleep(0.4)  # together longer than headers may take
            client.send("a")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
    async with Client(doors.l4) as client:
        for _ in range(4):
            await asyncio.sleep(0.8)  # together longer than it may be idle
            assert (await client.ask("x"))[0] == 200


async def test_who_is_slow_is_cut_though_no_setting_says_so(doors_unset: Doors) -> None:
    async def cut(door: str, first: str = "") -> float:
        async with Client(getattr(doors_unset, door)) as client:
            client.send(first)
            return await client.closed_after(25)

    half = f"GET / HTTP/1.1\r\nhost: {HOST}\r\nx-slow: "
    found = await asyncio.gather(
        *(cut("ingress_tls"), cut("gateway_tls"), cut("ingress", half), cut("gateway", half))
    )
    assert min(found) > 5


# ── idle streams ────────────────────────────────────────────────────────────────────────────

UPGRADE = "GET / HTTP/1.1\r\nhost: HOST\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


async def test_a_silent_websocket_is_kept_as_long_as_the_setting_says(doors: Doors) -> None:
    upgrade = UPGRADE.replace("HOST", "plain.example.test")
    async with Client(doors.ingress) as client:
        client.send(upgrade)
        assert b"101" in await client.reader.readuntil(b"\r\n\r\n")
        assert await client.closed_after() > 1
    doors.limits(SHORT.replace("streamIdleSeconds: 2", "streamIdleSeconds: 0"))

    async def kept() -> bool:
        async with Client(doors.ingress) as client:
            client.send(upgrade)
            try:
                await client.reader.readuntil(b"\r\n\r\n")
                await asyncio.wait_for(client.reader.read(1), 3.5)
            except TimeoutError:
                client.send("x")
                return await client.reader.read(1) == b"x"
            except (asyncio.IncompleteReadError, OSError):
                return False
            return False

    await until(kept, 25)


async def test_a_timeout_of_0_lets_requests_of_its_route_be_silent(doors: Doors) -> None:
    doors.house.write("gateway.yaml", GATEWAY.replace("TIMEOUTS", "{request: 0s}"))

    async def kept() -> bool:
        async with Client(doors.gateway) as client:
            client.send(UPGRADE.replace("HOST", HOST))
            try:
                await client.reader.readuntil(b"\r\n\r\n")
                await asyncio.wait_for(client.reader.read(1), 3.5)
            except TimeoutError:
                return True
            except (asyncio.IncompleteReadError, OSError):
                return False
            return False

    await until(kept, 20)


# ── how many ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["ingress", "gateway", "l4"])
async def test_a_full_virtual_service_leaves_its_neighbours_be(doors: Doors, door: str) -> None:
    doors.limits("{connections: 5}")
    place = getattr(doors, door)
    host = "plain.example.test" if door != "gateway" else HOST
    others = {"ingress", "gateway", "l4"} - {door}
    async with contextlib.AsyncExitStack() as stack:

        async def full() -> bool:
            """Whether five are served and go on being so, and a sixth is not."""
            some = [await stack.enter_async_context(Client(place)) for _ in range(6)]
            first = [bool((await client.ask(host))[0]) for client in some]
            again = [bool((await client.ask(host))[0]) for client in some[:5]]
            if first == [True] * 5 + [False] and all(again):
                return True
            await stack.aclose()
            return False

        await until(full)
        for other in others:
            named = HOST if other == "gateway" else "plain.example.test"
            async with Client(getattr(doors, other)) as client:
                assert (await client.ask(named))[0] == 200
        assert not await served(place)
        await stack.aclose()
    await until(lambda: served(place))


async def test_a_connection_of_http2_may_have_little_at_once(doors_unset: Doors) -> None:
    """As Envoy says itself when it greets: RFC 9113, 6.5.2 and 6.9."""
    concurrent_streams, initial_window = 3, 4
    for place in (doors_unset.ingress_tls, doors_unset.gateway_tls):
        reader, writer = await asyncio.open_connection(
            *place, ssl=trusting("h2"), server_hostname=HOST
        )
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        settings: dict[int, int] = {}
        window = 65_535
        async with asyncio.timeout(10):
            while concurrent_streams not in settings or window == 65_535:
                size, kind, flags, stream = struct.unpack("!xHBBI", await reader.readexactly(9))
                body = await reader.readexactly(size)
                if kind == 4 and not flags & 1:
                    settings |= dict(struct.iter_unpack("!HI", body))
                if (kind, stream) == (8, 0):
                    window += int.from_bytes(body)
        writer.close()
        assert settings[concurrent_streams] == 100
        assert settings.get(initial_window, 65_535) <= 64 << 10
        assert window == 1 << 20


async def test_who_reads_nothing_costs_an_engine_little(doors_unset: Doors) -> None:
    async def held() -> int:
        """Bytes that engines have read from endpoints, and can't hand on."""
        found = [0]
        for name in doors_unset.house.serve.engines.running:
            admin = doors_unset.house.serve.engines.admin(name)
            found += (await admin.stats(r"downstream_cx_tx_bytes_buffered$")).values()
        return max(found)

    async with Client(doors_unset.ingress) as client:
        client.send("GET /endless HTTP/1.1\r\nhost: plain.example.test\r\n\r\n")
        before = -1
        async with asyncio.timeout(30):
            while (now := await held()) == 0 or now != before:
                before = now
                await asyncio.sleep(1)
        assert now <= 128 << 10


# ── what a request may be like ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", ["ingress", "gateway"])
async def test_doubled_and_escaped_slashes_find_the_rule_of_the_plain_path(
    doors: Doors, door: str
) -> None:
    place = getattr(doors, door)
    host = "plain.example.test" if door == "ingress" else HOST
    for path in ("//a///b", "/a/./b", "/c/../a/b", "/c/%2e%2e/a/b", "/a\\b", "/%61/b"):
        async with Client(place) as client:
            status_, told = await client.ask(host, path)
            assert (status_, "\r\n\r\n/a/b " in told) == (200, True), path
    for path in ("/a%2Fb", "/a%5cb", "/c/..%2fa/b", "/c%2f..%2Fa%2fb"):
        async with Client(place) as client:
            status_, told = await client.ask(host, f"{path}?x=%2F")
            assert (status_, "location: /a/b?x=%2f" in told) == (307, True), (path, told)
    doors.limits("{mergeSlashes: false, escapedSlashes: KeepUnchanged}")

    async def untouched() -> bool:
        async with Client(place) as client:
            _, told = await client.ask(host, "//a%2Fb")
            return "\r\n\r\n//a%2fb " in told

    await until(untouched)


async def test_names_with_underscores_pass_unless_the_setting_says_otherwise(doors: Doors) -> None:
    async def seen() -> tuple[int, bool]:
        async with Client(doors.ingress) as client:
            status_, told = await client.ask("plain.example.test", more="under_score: 1\r\n")
            return status_, "under_score" in told

    assert await seen() == (200, True)
    for action, wanted in (("Drop", (200, False)), ("Reject", (400, False))):
        doors.limits(f"{{underscores: {action}}}")

        async def as_said(wanted: tuple[int, bool] = wanted) -> bool:
            return await seen() == wanted

        await until(as_said)


async def test_too_many_or_too_large_headers_are_refused(doors: Doors) -> None:
    doors.limits("{headers: 20, headersKiB: 8}")

    async def refused() -> bool:
        async with Client(doors.ingress) as client:
            large = (await client.ask("plain.example.test", more=f"a: {'b' * 9000}\r\n"))[0]
        async with Client(doors.ingress) as client:
            many = "".join(f"x-{i}: 1\r\n" for i in range(30))
            return ((await client.ask("plain.example.test", more=many))[0], large) == (431, 431)

    await until(refused)
    assert await served(doors.ingress)


async def test_clients_hear_nothing_of_envoy(doors: Doors) -> None:
    async with Client(doors.ingress) as client:
        _, told = await client.ask("plain.example.test")
    head = told.partition("\r\n\r\n")[0]
    assert "x-envoy" not in head
    assert "server:" not in head


async def test_a_limit_out_of_bounds_is_refused_with_its_field(doors: Doors) -> None:
    doors.limits("{connections: 0}")
    found = doors.house.serve
    await doors.house.until(
        lambda: any(
            "clientLimits.connections" in refusal.field + refusal.remedy
            for refusals in found.file_refusals.values()
            for refusal in refusals
        )
    )
    assert await served(doors.ingress)
    assert status.ingresses(found.reconciler)
