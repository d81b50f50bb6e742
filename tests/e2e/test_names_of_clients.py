"""Names that clients make up, in a handshake or a request: what they cost, and whom."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from cryptography import x509

from akocore.engines.envoy.ads import Engine
from akocore.engines.envoy.resources import LONGEST_AUTHORITY, SDS
from e2e.house import CLASS, house_over
from e2e.test_certificates import GOOD, TLS, made, serial

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEPT = 40
"""Names beside those of hosts, in this house."""
WILD = made("*.wild.test")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TLS]:
    more = f"limits: {{serverNames: {KEPT}}}\n"
    async with house_over(tmp_path_factory.mktemp("names"), more) as house:
        out = TLS(house)
        house.write("class.yaml", CLASS.replace("SIZE", "SMALL").replace("127.10.77", "127.10.79"))
        out.secret("good", out.good)
        await out.app("good", GOOD)
        out.secret("wild", WILD)
        await out.app("wild", "*.wild.test")
        await out.until_shown("first.wild.test", serial(WILD[0]))
        yield out


def engines(tls: TLS) -> list[Engine]:
    return list(tls.house.serve.ads.engines.values())


def names(engine: Engine) -> int:
    """What the controller keeps for an engine's names: the greatest of its tables."""
    spelt = sum(map(len, engine.spellings.values()))
    return max(spelt, len(engine.subscribed[SDS]), len(engine.learnt))


async def kept(tls: TLS) -> list[int]:
    """How many certificates each engine keeps, as it says itself."""
    out = []
    for engine in engines(tls):
        admin = tls.house.serve.engines.admin(engine.name)
        stats = await admin.stats(r"on_demand_secret\.cert_active$")
        out.append(max(stats.values()))
    return out


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE


async def shown(tls: TLS, sni: str) -> int:
    """Serial number of the certificate for a name; 0: there is none."""
    port = 443 + tls.house.offset
    try:
        async with asyncio.timeout(20):
            _, writer = await asyncio.open_connection(
                tls.vip, port, ssl=CONTEXT, server_hostname=sni
            )
    except (ssl.SSLError, ConnectionError):
        return 0
    certificate = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).serial_number


async def ask(tls: TLS, prefix: str, count: int, wanted: int) -> None:
    """Handshakes under names that nobody has asked for yet, some at once."""
    for first in range(0, count, 20):
        some = range(first, min(first + 20, count))
        asked = [shown(tls, f"{prefix}{i}.wild.test") for i in some]
        assert set(await asyncio.gather(*asked)) == {wanted}


async def test_names_under_a_wildcard_are_kept_up_to_a_limit(tls: TLS) -> None:
    wanted = serial(WILD[0])
    await ask(tls, "warm", 3 * KEPT, wanted)
    await ask(tls, "more", 1000, wanted)
    hosts = 2
    await tls.house.until(lambda: all(names(one) <= KEPT + hosts for one in engines(tls)))
    async with asyncio.timeout(10):
        while max(await kept(tls)) > KEPT + hosts:
            await asyncio.sleep(0.05)
    # Asked for again, the same certificate; and a new one reaches all names that are kept.
    await ask(tls, "warm", KEPT, wanted)
    assert await tls.shown(GOOD) == {serial(tls.good[0])}
    new = made("*.wild.test")
    tls.secret("wild", new)
    await tls.until_shown("warm1.wild.test", serial(new[0]))
    await ask(tls, "more", 100, serial(new[0]))
    tls.secret("wild", WILD)
    await tls.until_shown("warm1.wild.test", wanted)
    assert tls.house.serve.ads.nacks == tls.nacks


async def test_other_spellings_of_a_host_are_names_like_others(tls: TLS) -> None:
    good = serial(tls.good[0])
    for i in range(2 ** len("good") - 1):
        spelt = "".join(c.upper() if i >> n & 1 else c for n, c in enumerate("good"))
        for zone in ("test", "Test", "tEst", "teSt", "tesT", "TEst"):
            assert await shown(tls, f"{spelt}.{zone}") == good
    await tls.house.until(lambda: all(names(one) <= KEPT + 2 for one in engines(tls)))


async def test_a_connection_outlives_its_name(tls: TLS) -> None:
    port = 443 + tls.house.offset
    reader, writer = await asyncio.open_connection(
        tls.vip, port, ssl=CONTEXT, server_hostname="kept.wild.test"
    )
    await ask(tls, "after", 6 * KEPT, serial(WILD[0]))
    await tls.house.until(
        lambda: not any("kept.wild.test" in one.subscribed[SDS] for one in engines(tls))
    )
    writer.write(b"GET / HTTP/1.1\r\nHost: kept.wild.test\r\n\r\n")
    assert (await reader.readuntil(b"\r\n"))[9:12] == b"200"
    writer.transport.abort()


async def test_names_that_nobody_serves_are_kept_by_nobody(tls: TLS) -> None:
    for i in range(100):
        assert await shown(tls, f"two.labels{i}.wild.test") == 0
    await tls.house.until(
        lambda: not any("labels" in n for one in engines(tls) for n in one.subscribed[SDS])
    )
    for engine in engines(tls):
        assert not any("labels" in host for host in (*engine.spellings, *engine.learnt))


@pytest.mark.parametrize("authority", ["a" * 300 + ".wild.test", "a." * 200 + "wild.test"])
async def test_a_host_that_no_host_can_be_is_not_looked_for(tls: TLS, authority: str) -> None:
    assert len(authority) > LONGEST_AUTHORITY
    house = tls.house
    house.app("any", "")
    await house.until(lambda: "" in house.addresses())
    await house.until_status(house.addresses()[""], "whoever.test", 200)
    assert await house.get(house.addresses()[""], authority) == 404
    longest = ".".join(["a" * 61] * 4) + ".names.:65535"
    assert len(longest) == LONGEST_AUTHORITY
    assert await house.get(house.addresses()[""], longest) == 200
