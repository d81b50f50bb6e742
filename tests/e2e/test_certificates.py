"""Certificates as people paste them, spell them and replace them; one house for all tests."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from akocore import status
from akocore.engines.envoy.resources import LDS
from akocore.model import Refusal
from e2e.house import CLASS, House, house_over
from engines.refusals import BAD_CERTIFICATES

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = "good.test"
Pem = tuple[bytes, bytes]


def made(
    host: str,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    usage: x509.KeyUsage | None = None,
) -> tuple[bytes, bytes]:
    """A self-signed certificate for ``host`` and its key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    return (
        builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def serial(chain: bytes) -> int:
    return x509.load_pem_x509_certificates(chain)[0].serial_number


class TLS:
    """The house with one good TLS host, and handshakes with it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.good = made(GOOD)
        self.vip = ""
        self.nacks = 0  # before this test

    def secret(self, name: str, pem: Pem) -> None:
        crt, key = (base64.b64encode(part).decode() for part in pem)
        self.house.write(
            f"secret-{name}.yaml",
            f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\n"
            f"type: kubernetes.io/tls\ndata: {{tls.crt: '{crt}', tls.key: '{key}'}}\n",
        )

    async def app(self, name: str, host: str) -> None:
        """An Ingress ``name`` with Secret ``name``; wait until its host has its address."""
        self.house.app(name, host, tls=name)
        await self.house.until(lambda: host in self.house.addresses())
        self.vip = self.house.addresses()[host]

    def remove(self, *files: str) -> None:
        for file in files:
            (self.house.directory / f"{file}.yaml").unlink()

    def refusals(self, name: str) -> list[Refusal]:
        return status.ingress_refusals(self.house.serve.reconciler, f"default/{name}")

    async def handshake(self, sni: str) -> int:
        """Serial number of the certificate that one of the engines shows; 0: it says no."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        port = 443 + self.house.offset
        try:
            _, writer = await asyncio.wait_for(
                asyncio.open_connection(self.vip, port, ssl=context, server_hostname=sni), 5
            )
        except ssl.SSLError:
            return 0
        shown = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.transport.abort()
        return x509.load_der_x509_certificate(shown).serial_number

    async def shown(self, sni: str) -> set[int]:
        """What the engines show: enough handshakes to meet each of the two."""
        return {await self.handshake(sni) for _ in range(12)}

    async def until_shown(self, sni: str, wanted: int) -> None:
        async with asyncio.timeout(10):
            while await self.shown(sni) != {wanted}:
                await asyncio.sleep(0.02)

    async def unharmed(self) -> None:
        """The good host is served, and no engine has had anything to refuse in this test."""
        assert await self.handshake(GOOD) == serial(self.good[0])
        assert self.house.serve.ads.nacks == self.nacks


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TLS]:
    async with house_over(tmp_path_factory.mktemp("tls")) as house:
        out = TLS(house)
        house.write("class.yaml", CLASS.replace("SIZE", "SMALL").replace("127.10.77", "127.10.78"))
        out.secret("good", out.good)
        await out.app("good", GOOD)
        await out.until_shown(GOOD, serial(out.good[0]))
        assert not house.serve.ads.nacks
        yield out


@pytest.fixture
def tls(shared: TLS) -> TLS:
    shared.nacks = shared.house.serve.ads.nacks
    return shared


NUMBER = count(1)
CHAIN, KEY = made("pasted.test")
PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
TRADITIONAL = load_pem_private_key(KEY, None).private_bytes(
    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
)

PASTED: dict[str, Pem] = {
    "plain": (CHAIN, KEY),
    "blocks glued together": (CHAIN.rstrip() + CHAIN, KEY),
    "indented": (CHAIN.replace(b"\n", b"\n  "), KEY.replace(b"\n", b"\n  ")),
    "line ends gone": (CHAIN.replace(b"\n", b" "), KEY),
    "line ends of Windows": (CHAIN.replace(b"\n", b"\r\n"), KEY.replace(b"\n", b"\r\n")),
    "a byte order mark": (b"\xef\xbb\xbf" + CHAIN, b"\xef\xbb\xbf" + KEY),
    "a leading NUL": (b"\0" + CHAIN, KEY),
    "text around the blocks": (b"subject=x\n" + CHAIN + b"\nend\n", b"Bag Attributes\n" + KEY),
    "the key as openssl ecparam writes it": (CHAIN, PARAMETERS + TRADITIONAL),
    "the key in tls.crt too": (KEY + CHAIN, KEY),
}


@pytest.mark.parametrize("pem", PASTED.values(), ids=PASTED)
async def test_a_certificate_is_served_however_it_was_pasted(tls: TLS, pem: Pem) -> None:
    name = f"pasted{next(NUMBER)}"
    tls.secret(name, pem)
    await tls.app(name, f"{name}.test")
    assert await tls.shown(f"{name}.test") == {serial(CHAIN)}
    assert not tls.refusals(name)
    await tls.unharmed()


AGREE_ONLY = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=True,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
REFUSED: dict[str, tuple[Pem, str, str, str]] = {
    "second block cut off": (
        (CHAIN + CHAIN[:200], KEY),
        "InvalidCertificate",
        "data[tls.crt]",
        "cut off",
    ),
    "second block is noise": (
        (CHAIN + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", KEY),
        "InvalidCertificate",
        "data[tls.crt]",
        "Replace",
    ),
    "key may not sign": (
        made("x.test", usage=AGREE_ONLY),
        "InvalidCertificate",
        "data[tls.crt]",
        "digitalSignature",
    ),
    "key of another": ((CHAIN, made("x.test")[1]), "CertificateMismatch", "data[tls.key]", "own"),
    "leaf not first": (
        (made("x.test")[0] + CHAIN, KEY),
        "CertificateMismatch",
        "data[tls.key]",
        "own",
    ),
    "curve that Envoy lacks": (
        made("x.test", ec.generate_private_key(ec.SECP256K1())),
        "InvalidCertificate",
        "data[tls.key]",
        "P-256",
    ),
    "empty": ((b"", b""), "InvalidCertificate", "data[tls.crt]", "Add tls.crt"),
}


@pytest.mark.parametrize("pem, reason, field, remedy", REFUSED.values(), ids=REFUSED)
async def test_a_certificate_that_no_engine_takes_is_refused_before_one_sees_it(
    tls: TLS, pem: Pem, reason: str, field: str, remedy: str
) -> None:
    name = f"refused{next(NUMBER)}"
    tls.secret(name, pem)
    await tls.app(name, f"{name}.test")
    (refusal,) = tls.refusals(name)
    assert (refusal.field, refusal.reason) == ("spec.tls[0].secretName", reason)
    assert f"Secret default/{name}, {field}" in refusal.remedy
    assert remedy in refusal.remedy
    assert await tls.shown(f"{name}.test") == {0}
    await tls.unharmed()


async def test_a_good_secret_that_turns_bad_is_served_no_more_until_it_is_good_again(
    tls: TLS,
) -> None:
    first, second = made("turns.test"), made("turns.test")
    tls.secret("turns", first)
    await tls.app("turns", "turns.test")
    await tls.until_shown("turns.test", serial(first[0]))
    tls.secret("turns", (second[0], first[1]))
    await tls.until_shown("turns.test", 0)
    assert [r.reason for r in tls.refusals("turns")] == ["CertificateMismatch"]
    assert await tls.house.get(tls.vip, "turns.test", redirects=False) == 302
    tls.secret("turns", second)
    await tls.until_shown("turns.test", serial(second[0]))
    assert not tls.refusals("turns")
    await tls.unharmed()


async def test_a_new_certificate_reaches_every_spelling_of_its_host(tls: TLS) -> None:
    first, second = made("spelt.test"), made("spelt.test")
    spellings = ("spelt.test", "Spelt.TEST", "spelt.test.")
    tls.secret("spelt", first)
    await tls.app("spelt", "spelt.test")
    for sni in spellings:
        assert await tls.shown(sni) == {serial(first[0])}
    tls.secret("spelt", second)
    for sni in spellings:
        await tls.until_shown(sni, serial(second[0]))
    await tls.unharmed()


async def test_a_host_of_its_own_takes_over_from_the_wildcard_and_gives_back(tls: TLS) -> None:
    wild, own, new = made("*.wild.test"), made("own.wild.test"), made("*.wild.test")
    tls.secret("wild", wild)
    await tls.app("wild", "*.wild.test")
    assert await tls.shown("own.wild.test") == {serial(wild[0])}
    assert await tls.shown("two.labels.wild.test") == {0}
    tls.secret("own", own)
    store = tls.house.serve.reconciler.store
    await tls.house.until(lambda: store.secret("default/own") is not None)  # before its Ingress
    await tls.app("own", "own.wild.test")
    await tls.until_shown("own.wild.test", serial(own[0]))
    tls.secret("wild", new)
    await tls.until_shown("other.wild.test", serial(new[0]))
    assert await tls.shown("own.wild.test") == {serial(own[0])}
    tls.remove("own")
    await tls.until_shown("own.wild.test", serial(new[0]))
    await tls.unharmed()


async def test_a_client_that_came_before_the_ingress_is_served_after_it(tls: TLS) -> None:
    pem = made("early.test")
    assert await tls.shown("early.test") == {0}
    tls.secret("early", pem)
    await tls.app("early", "early.test")
    await tls.until_shown("early.test", serial(pem[0]))
    await tls.unharmed()


async def test_names_that_nobody_has_are_not_kept(tls: TLS) -> None:
    for i in range(30):
        assert await tls.handshake(f"stranger{i}.test") == 0
    engines = tls.house.serve.ads.engines.values()
    await tls.house.until(
        lambda: not any("stranger" in sni for engine in engines for sni in engine.names_of(""))
    )
    assert not any("stranger" in host for engine in engines for host in engine.spellings)
    await tls.unharmed()


async def test_a_connection_outlives_the_certificate_that_it_began_with(tls: TLS) -> None:
    first, second = made("kept.test"), made("kept.test")
    tls.secret("kept", first)
    await tls.app("kept", "kept.test")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(
        tls.vip, 443 + tls.house.offset, ssl=context, server_hostname="kept.test"
    )

    async def ask() -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nHost: kept.test\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(2) == b"ok"
        return head[:12]

    assert await ask() == b"HTTP/1.1 200"
    tls.secret("kept", second)
    await tls.until_shown("kept.test", serial(second[0]))
    assert await ask() == b"HTTP/1.1 200"
    writer.transport.abort()
    await tls.unharmed()


async def test_the_fiftieth_tls_host_changes_no_listener(tls: TLS) -> None:
    (catalog,) = tls.house.serve.ads.catalogs.values()

    def listeners() -> dict[str, bytes]:
        return {name: one.fingerprint for name, one in catalog.resources[LDS].items()}

    before = listeners()
    assert before
    pem = made("many.test")
    hosts = [f"many{i}.test" for i in range(50)]
    for i, host in enumerate(hosts):
        tls.secret(f"many{i}", pem)
        tls.house.app(f"many{i}", host, tls=f"many{i}")
    await tls.house.until(lambda: set(hosts) <= tls.house.addresses().keys())
    for host in hosts:
        assert await tls.handshake(host) == serial(pem[0])
    assert listeners() == before
    await tls.unharmed()


async def test_what_only_the_engine_finds_out_is_said_and_leaves_no_client_waiting(
    tls: TLS,
) -> None:
    """Here it is given another's key, past translation, which sees that."""
    tls.secret("odd", made("odd.test"))
    await tls.app("odd", "odd.test")
    realiser = tls.house.serve.reconciler.realiser
    realiser.certificates["default/odd"] = BAD_CERTIFICATES["another's key"]()
    realiser.push_secrets(["default/odd"])
    realiser.publish()
    assert await tls.shown("odd.test") == {0}
    await tls.house.until(lambda: len(tls.refusals("odd")) == 1)
    assert {(r.field, r.reason) for r in tls.refusals("odd")} == {("spec.tls", "EngineRejected")}
    refused = tls.house.serve.ads.nacks
    assert await tls.shown("odd.test") == {0}
    assert tls.house.serve.ads.nacks == refused  # each engine once, not each client
    assert await tls.handshake(GOOD) == serial(tls.good[0])
    good = made("odd.test")
    tls.secret("odd", good)
    await tls.until_shown("odd.test", serial(good[0]))
    assert not tls.refusals("odd")
