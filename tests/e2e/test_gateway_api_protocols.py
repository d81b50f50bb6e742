"""HTTPS, TLS, TCP and UDP listeners of Gateways, through real Envoys."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from akocore import status_gateway
from akocore.kube.gateway_objects import GATEWAY
from e2e.house import House, house_over
from e2e.l4 import L4House, Server, service
from e2e.test_gateway_api import CLASS, SERVICE, conditions, vip
from e2e.test_tls import pair


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_over(tmp_path) as house:
        house.write("class.yaml", CLASS)
        house.write("hello.yaml", SERVICE.replace("BACKEND", str(house.backend)))
        yield house


@pytest_asyncio.fixture
async def l4(house: House) -> AsyncIterator[L4House]:
    made = L4House(house)
    yield made
    for server in made.servers:
        server.stop()


def write(house: House, name: str, *objects: dict[str, Any]) -> None:
    house.write(name, json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def api(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    version = "gateway.networking.k8s.io/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def gateway(*listeners: dict[str, Any], **more: Any) -> dict[str, Any]:
    spec = {"gatewayClassName": "avi-lb", "listeners": list(listeners), **more}
    return api("Gateway", "web", spec)


def route(kind: str, name: str, to: str, section: str, **more: Any) -> dict[str, Any]:
    rule = {"backendRefs": [{"name": to, "port": 80}]}
    parent = {"name": "web", "sectionName": section}
    return api(kind, name, {"parentRefs": [parent], "rules": [rule], **more})


def https(name: str, host: str, secret: str) -> dict[str, Any]:
    tls = {"certificateRefs": [{"name": secret}]}
    return {"name": name, "port": 443, "protocol": "HTTPS", "hostname": host, "tls": tls}


def secret(name: str, chain: bytes, key: bytes) -> dict[str, Any]:
    data = {"tls.crt": chain, "tls.key": key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "kubernetes.io/tls",
        "data": {part: base64.b64encode(text).decode() for part, text in data.items()},
    }


async def serial(house: House, address: str, name: str) -> int | None:
    """Of the certificate that a client is shown who asks for ``name``; None: no handshake."""
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(
            address, 443 + house.offset, ssl=context, server_hostname=name
        )
    except OSError:
        return None
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


async def ask(house: House, address: str, sni: str, host: str) -> int:
    url = f"https://{address}:{443 + house.offset}/"
    headers = {"Host": host}
    async with house.client.get(url, ssl=False, server_hostname=sni, headers=headers) as answer:
        return answer.status


async def test_each_https_listener_has_its_certificate_and_its_hosts(house: House) -> None:
    one, other = pair("a.example.test"), pair("b.example.test")
    write(house, "secrets.json", secret("one", *one[:2]), secret("other", *other[:2]))
    listeners = [https("a", "a.example.test", "one"), https("b", "*.example.test", "other")]
    write(house, "gateway.json", gateway(*listeners))
    write(
        house,
        "routes.json",
        route("HTTPRoute", "a", "hello", "a"),
        route("HTTPRoute", "b", "hello", "b"),
    )
    await house.until(lambda: bool(vip(house)))
    address = vip(house)
    assert await serial(house, address, "a.example.test") == one[2]
    assert await serial(house, address, "b.example.test") == other[2]
    assert await serial(house, address, "other.test") is None
    assert await ask(house, address, "a.example.test", "a.example.test") == 200
    assert await ask(house, address, "b.example.test", "c.example.test") == 200
    # A connection of one listener is not for the hosts of another.
    assert await ask(house, address, "a.example.test", "b.example.test") == 421
    assert await ask(house, address, "b.example.test", "a.example.test") == 421
    assert await ask(house, address, "a.example.test", "other.test") == 404
    new = pair("a.example.test")
    write(house, "secrets.json", secret("one", *new[:2]), secret("other", *other[:2]))
    async with asyncio.timeout(10):
        while await serial(house, address, "a.example.test") != new[2]:
            await asyncio.sleep(0.02)
    write(house, "secrets.json", secret("other", *other[:2]))
    async with asyncio.timeout(10):
        while await serial(house, address, "a.example.test") == new[2]:
            await asyncio.sleep(0.02)
    assert await ask(house, address, "b.example.test", "b.example.test") == 200
    said = status_gateway.gateway(house.serve.reconciler, "default/web")
    assert said is not None
    reasons = {c.type: c.reason for c in said.listeners[0].conditions}
    assert reasons["ResolvedRefs"] == "InvalidCertificateRef"


async def test_tls_passes_through_to_the_backend_of_its_server_name(l4: L4House) -> None:
    house = l4.house
    chain, key, number = pair("inner.example.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = house.directory.parent
    (files / "c.pem").write_bytes(chain)
    (files / "k.pem").write_bytes(key)
    context.load_cert_chain(files / "c.pem", files / "k.pem")

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    at = server.sockets[0].getsockname()
    house.write("inner.yaml", service("inner", "TCP/80", to=[at], kind="ClusterIP"))
    tls = {"mode": "Passthrough"}
    listener = {"name": "tls", "port": 443, "protocol": "TLS", "tls": tls}
    write(house, "gateway.json", gateway({**listener, "hostname": "*.example.test"}))
    write(
        house,
        "route.json",
        route("TLSRoute", "inner", "inner", "tls", hostnames=["inner.example.test"]),
    )
    await house.until(lambda: bool(vip(house)))
    async with asyncio.timeout(10):  # the route may come after the Gateway
        while await serial(house, vip(house), "inner.example.test") != number:
            await asyncio.sleep(0.02)
    assert await serial(house, vip(house), "other.example.test") is None
    server.close()


async def test_tcp_and_udp_share_a_port_and_the_oldest_route_has_it(l4: L4House) -> None:
    house = l4.house
    one, other = await l4.server("one"), await l4.server("other")

    def both(name: str, server: Server) -> None:
        ports = ("TCP/80", "UDP/80")
        text = service(name, *ports, to=[server.at], kind="ClusterIP")
        house.write(f"{name}.yaml", text)

    both("one", one)
    both("other", other)
    listeners = [{"name": p.lower(), "port": 53, "protocol": p} for p in ("TCP", "UDP")]
    write(house, "gateway.json", gateway(*listeners))
    await house.until(lambda: bool(vip(house)))
    address = vip(house)
    assert await l4.who(address, 53) == "refused"
    write(house, "a.json", route("TCPRoute", "tcp", "one", "tcp"))
    write(house, "b.json", route("UDPRoute", "udp", "other", "udp"))
    async with asyncio.timeout(10):
        while await l4.who(address, 53) != "one" or await l4.who_udp(address, 53) != "other":
            await asyncio.sleep(0.05)
    # One more TCPRoute waits, and has the port when the first one goes.
    write(house, "c.json", route("TCPRoute", "zzz", "other", "tcp"))
    routes = house.serve.reconciler.gateway_api.routes
    await house.until(lambda: ("TCPRoute", "default/zzz") in routes)
    assert conditions(house, "TCPRoute", "default/zzz")["Accepted"] == (True, "Accepted")
    assert await l4.who(address, 53) == "one"
    (house.directory / "a.json").unlink()
    async with asyncio.timeout(10):
        while await l4.who(address, 53) != "other":
            await asyncio.sleep(0.05)


async def test_an_address_that_is_asked_for_moves_while_it_is_served(house: House) -> None:
    http = {"name": "http", "port": 80, "protocol": "HTTP"}
    write(house, "gateway.json", gateway(http))
    write(house, "route.json", route("HTTPRoute", "a", "hello", "http"))
    await house.until(lambda: bool(vip(house)))
    old = vip(house)
    await house.until_status(old, "any.test", 200)
    wanted = "127.10.78.240"
    write(house, "gateway.json", gateway(http, addresses=[{"value": wanted}]))
    failed = 0
    while vip(house) != wanted:
        try:
            failed += await house.get(vip(house) or old, "any.test") != 200
        except aiohttp.ClientError:
            failed += 1
        await asyncio.sleep(0.01)
    assert failed == 0
    assert await house.get(wanted, "any.test") == 200
    write(house, "gateway.json", gateway(http, addresses=[{"value": "127.10.99.1"}]))

    def refused() -> bool:
        found = status_gateway.refusals(house.serve.reconciler, GATEWAY, "default/web") or ()
        return [one.reason for one in found] == ["AddressNotUsable"]

    await house.until(refused)
    assert await house.get(wanted, "any.test") == 200
