"""Certificates by SNI, live: made, rotated, broken, gone."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from akocore.cli.dummy import manifests
from e2e.running import OFFSET, Backend, Client, Running

DOMAIN = "avi.iberia.local"
HTTPS = 443 + OFFSET


def pair(host: str, days: float = 30) -> tuple[bytes, bytes, int]:
    """A self-signed certificate: chain, key (PEM) and serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), private, made.serial_number


class House:
    """A running akocore with TLS hosts."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def app(self, name: str, secret: str, host: str = "") -> str:
        items = manifests(name, 1, endpoint=self.running.endpoint)
        spec = items[-1]["spec"]
        spec["rules"][0]["host"] = host = host or f"{name}.{DOMAIN}"
        spec["tls"] = [{"hosts": [host], "secretName": secret}]
        self.running.write(f"{name}.json", {"kind": "List", "items": items})
        return host

    def secret(self, name: str, chain: bytes, key: bytes) -> None:
        data = {"tls.crt": chain, "tls.key": key}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "type": "kubernetes.io/tls",
            "data": {part: base64.b64encode(text).decode() for part, text in data.items()},
        }
        self.running.write(f"secret-{name}.json", body)

    async def vip(self, host: str) -> str:
        async with asyncio.timeout(20):
            while host not in (shown := await self.running.addresses()):
                await asyncio.sleep(0.02)
        return shown[host]

    async def refused(self, name: str, reason: str) -> str:
        """Wait until an Ingress says a reason; the message."""
        async with asyncio.timeout(10):
            while True:
                for item in await self.running.ask("ingress"):
                    for condition in item["status"]["conditions"]:
                        at = (item["metadata"]["name"], condition["reason"])
                        if at == (f"{name}1", reason):
                            return str(condition["message"])
                await asyncio.sleep(0.02)

    async def handshake(self, address: str, sni: str, alpn: str = "http/1.1") -> tuple[int, int]:
        """(serial number of the certificate, HTTP status); (0, 0) when the handshake fails."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([alpn])
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(address, HTTPS, ssl=context, server_hostname=sni), 5
            )
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            return 0, 0
        found = writer.get_extra_info("ssl_object")
        assert found.selected_alpn_protocol() == alpn
        serial = x509.load_der_x509_certificate(found.getpeercert(True)).serial_number
        status = 0
        if alpn == "http/1.1":
            writer.write(f"GET / HTTP/1.1\r\nHost: {sni}\r\nConnection: close\r\n\r\n".encode())
            status = int((await reader.readuntil(b"\r\n\r\n"))[9:12])
        writer.transport.abort()
        return serial, status

    async def until_serial(self, address: str, sni: str, serial: int) -> None:
        async with asyncio.timeout(10):
            while (await self.handshake(address, sni))[0] != serial:
                await asyncio.sleep(0.02)

    async def nacks(self) -> int:
        return sum(e["nacks"] + e["rejected"] for e in (await self.running.engines()).values())


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(tmp_path, server.sockets[0].getsockname()[1])
    running.config = "defaults: {shardSize: SMALL}\n"
    await running.start()
    yield House(running)
    await running.stop()
    server.close()


async def test_each_host_has_its_certificate_and_http_redirects(house: House) -> None:
    one, two, wild = pair(f"one.{DOMAIN}"), pair(f"two.{DOMAIN}"), pair("*.wild.test")
    for name, (chain, key, _) in {"one": one, "two": two, "wild": wild}.items():
        house.secret(name, chain, key)
    first, second = house.app("one", "one"), house.app("two", "two")
    house.app("wild", "wild", "*.wild.test")
    vip = await house.vip("*.wild.test")
    assert {await house.vip(first), await house.vip(second)} == {vip}
    assert await house.handshake(vip, first) == (one[2], 200)
    assert await house.handshake(vip, second) == (two[2], 200)
    assert await house.handshake(vip, "any.wild.test") == (wild[2], 200)
    assert (await house.handshake(vip, first, "h2"))[0] == one[2]
    assert await house.handshake(vip, "stranger.test") == (0, 0)
    reader, writer = await asyncio.open_connection(vip, 80 + OFFSET)
    writer.write(f"GET /a?b=c HTTP/1.1\r\nHost: {first}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.transport.abort()
    assert head.startswith("HTTP/1.1 302 ")
    assert f"location: https://{first}:{HTTPS}/a?b=c\r\n" in head.lower()
    assert await house.nacks() == 0


async def test_a_rotated_secret_is_served_at_once_and_loses_no_handshake(house: House) -> None:
    old, new = pair(f"one.{DOMAIN}"), pair(f"one.{DOMAIN}")
    house.secret("one", *old[:2])
    host = house.app("one", "one")
    vip = await house.vip(host)
    assert await house.handshake(vip, host) == (old[2], 200)
    answers: list[tuple[int, int]] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            answers.append(await house.handshake(vip, host))

    task = asyncio.create_task(load())
    await asyncio.sleep(0.2)
    house.secret("one", *new[:2])
    await house.until_serial(vip, host, new[2])
    async with asyncio.timeout(10):  # two Envoys answer, and each learns of it by itself
        while {serial for serial, _ in answers[-10:]} != {new[2]}:
            await asyncio.sleep(0.02)
    stop.set()
    await task
    assert set(answers) == {(old[2], 200), (new[2], 200)}
    assert await house.nacks() == 0


async def test_bad_secrets_say_so_and_leave_the_others_alone(house: House) -> None:
    good, other = pair(f"good.{DOMAIN}"), pair("other.test")
    house.secret("good", *good[:2])
    neighbour = house.app("good", "good")
    house.secret("mixed", good[0], other[1])
    house.secret("stale", *pair("stale.test", days=-1)[:2])
    house.secret("noise", b"nothing", b"of use")
    for name in ("mixed", "stale", "noise", "none"):
        house.app(name, name)
    vip = await house.vip(f"none.{DOMAIN}")
    assert "Secret default/none" in await house.refused("none", "SecretNotFound")
    assert "tls.key" in await house.refused("mixed", "CertificateMismatch")
    assert "expired" in await house.refused("stale", "CertificateExpired")
    assert "tls.crt" in await house.refused("noise", "InvalidCertificate")
    for name in ("mixed", "stale", "noise", "none"):
        assert await house.handshake(vip, f"{name}.{DOMAIN}") == (0, 0)
    assert await house.handshake(vip, neighbour) == (good[2], 200)

    late = pair(f"none.{DOMAIN}")
    house.secret("none", *late[:2])
    await house.until_serial(vip, f"none.{DOMAIN}", late[2])
    (house.running.directory / "secret-none.json").unlink()
    await house.until_serial(vip, f"none.{DOMAIN}", 0)
    assert await house.handshake(vip, neighbour) == (good[2], 200)
    assert await house.nacks() == 0


async def test_a_certificate_that_expires_is_no_longer_served(house: House) -> None:
    short = pair(f"one.{DOMAIN}", days=4 / 86400)
    house.secret("one", *short[:2])
    host = house.app("one", "one")
    vip = await house.vip(host)
    assert await house.handshake(vip, host) == (short[2], 200)
    await house.refused("one", "CertificateExpired")
    await house.until_serial(vip, host, 0)


async def test_tls_leaves_the_plain_neighbour_plain(house: House) -> None:
    chain, key, serial = pair(f"one.{DOMAIN}")
    house.secret("one", chain, key)
    secure = house.app("one", "one")
    house.running.dummy("plain", 1)
    vip = await house.vip(f"plain1.{DOMAIN}")
    client = Client()
    assert await client.get(vip, f"plain1.{DOMAIN}") == 200
    assert await client.get(vip, secure) == 302
    client.close()
    assert await house.handshake(vip, secure) == (serial, 200)
    assert await house.handshake(vip, f"plain1.{DOMAIN}") == (0, 0)
