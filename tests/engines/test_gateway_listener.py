"""Ports of a Gateway: chains by server name, certificates, TCP and UDP, through a real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from akocore.engines.envoy.gateway import (
    chain_collection,
    gateway_cluster,
    gateway_floor,
    gateway_listener,
    gateway_udp,
    secret_name,
)
from akocore.model_http import (
    Backend,
    BackendTls,
    Chain,
    ChainTls,
    ClientCertificates,
    HttpMatch,
    HttpRule,
    TextMatch,
)
from engines.authority import Authority
from engines.gateway_rig import ADDRESS, GROUP, OFFSET, VS, Rig, need_envoy, rig, to, until

pytestmark = pytest.mark.real
EVERYTHING = HttpMatch(TextMatch("prefix", ""))


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest_asyncio.fixture
async def gw() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one


class Names:
    """Secrets of a Gateway, by the host that they are for."""

    def __init__(self, gw: Rig, authority: Authority) -> None:
        self.gw = gw
        self.authority = authority

    def add(self, *dns: str) -> str:
        key = f"default/{dns[0].replace('*', 'any')}"
        pair = self.authority.issue(dns[0].replace("*", "any"), dns=dns)
        self.gw.add_secret(secret_name(key), pair.certificate.read_bytes(), pair.key.read_bytes())
        return key

    def client(self, name: str = "") -> ssl.SSLContext:
        out = ssl.create_default_context(cafile=self.authority.ca)
        out.check_hostname = False
        if name:
            pair = self.authority.issue(name, name)
            out.load_cert_chain(pair.certificate, pair.key)
        return out


@pytest.fixture
def names(gw: Rig, authority: Authority) -> Names:
    return Names(gw, authority)


async def served(names: Names, sni: str, *, port: int = 443, client: str = "") -> str:
    """The first name of the certificate that a client meets; what happened, if none."""
    context = names.client(client)
    try:
        _, writer = await asyncio.open_connection(
            ADDRESS, port + OFFSET, ssl=context, server_hostname=sni or None
        )
    except (OSError, ssl.SSLError) as err:
        return type(err).__name__
    found: Any = writer.get_extra_info("peercert")
    writer.transport.abort()
    return str(found["subjectAltName"][0][1])


def https(name: str, *secrets: str, sni: str = "", **more: Any) -> Chain:
    server_names = (sni,) if sni else ()
    return Chain(name, server_names, ChainTls(secrets, **more))


def answer(status: int) -> HttpRule:
    return HttpRule("r", EVERYTHING, answer=status)


# ─── HTTPS


async def test_chains_are_chosen_by_server_name_the_most_specific_first(
    gw: Rig, names: Names
) -> None:
    chains = [
        https("any", names.add("any.test")),
        https("wild", names.add("*.example.test"), sni="*.example.test"),
        https("a", names.add("a.example.test"), sni="a.example.test"),
    ]
    await gw.listen(*chains, port=443)
    hosts = {"any": "", "wild": "*.example.test"}
    await gw.publish([gateway_floor(VS, 443, chain, [host]) for chain, host in hosts.items()])
    for status, chain, host in (
        (210, "any", ""),
        (211, "wild", "*.example.test"),
        (212, "a", "a.example.test"),
    ):
        await gw.serve(answer(status), host=host, chain=chain, port=443, tls=True)
    context = names.client()
    for sni, certificate, status in (
        ("a.example.test", "a.example.test", 212),
        ("A.example.TEST", "a.example.test", 212),
        ("b.example.test", "*.example.test", 211),
        ("b.c.example.test", "*.example.test", 211),
        ("other.test", "any.test", 210),
    ):
        assert await served(names, sni) == certificate, sni
        got = await gw.ask(host=sni, port=443, ssl=context, server_hostname=sni)
        assert got.status == status, sni
    got = await gw.ask(host="b.example.test", port=443, ssl=context, server_hostname="other.test")
    assert got.status == 210  # the hosts of a chain are its own


async def test_without_a_chain_for_any_other_name_nobody_else_gets_a_handshake(
    gw: Rig, names: Names
) -> None:
    await gw.listen(https("a", names.add("a.test"), sni="a.test"), port=443)
    await gw.serve(answer(200), host="a.test", chain="a", port=443, tls=True)
    assert await served(names, "a.test") == "a.test"
    assert await served(names, "b.test") in ("ConnectionResetError", "SSLEOFError", "SSLError")
    assert await served(names, "") in ("ConnectionResetError", "SSLEOFError", "SSLError")


async def test_of_several_certificates_the_server_name_chooses(gw: Rig, names: Names) -> None:
    chain = https("any", names.add("a.test"), names.add("b.test"))
    await gw.listen(chain, port=443)
    assert await served(names, "a.test") == "a.test"
    assert await served(names, "b.test") == "b.test"
    assert await served(names, "c.test") == "a.test"


async def test_a_certificate_is_replaced_without_a_word_to_the_listener(
    gw: Rig, names: Names
) -> None:
    key = names.add("a.test")
    await gw.listen(https("any", key), port=443)
    assert await served(names, "a.test") == "a.test"
    pair = names.authority.issue("new", dns=["new.test"])
    gw.add_secret(secret_name(key), pair.certificate.read_bytes(), pair.key.read_bytes())
    await gw.publish([gw.secrets[secret_name(key)]])
    await until(lambda: served_is(names, "a.test", "new.test"))


async def served_is(names: Names, sni: str, name: str) -> bool:
    return await served(names, sni) == name


async def test_http2_is_spoken_over_tls(gw: Rig, names: Names) -> None:
    await gw.listen(https("any", names.add("a.test")), port=443)
    context = names.client()
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1")):
        context.set_alpn_protocols(offered)
        _, writer = await asyncio.open_connection(
            ADDRESS, 443 + OFFSET, ssl=context, server_hostname="a.test"
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
        writer.transport.abort()


@pytest.mark.parametrize("required", [True, False])
async def test_clients_show_certificates(
    gw: Rig, names: Names, tmp_path: Path, required: bool
) -> None:
    clients = Authority(tmp_path / "clients", "clients")
    asks = ClientCertificates(clients.ca.read_text(), required)
    await gw.listen(https("any", names.add("a.test"), clients=asks), port=443)
    await gw.serve(answer(200), host="a.test", chain="any", port=443, tls=True)

    async def status(signer: Authority | None) -> int | str:
        context = names.client()
        if signer is not None:
            pair = signer.issue("me", "me")
            context.load_cert_chain(pair.certificate, pair.key)
        try:
            got = await gw.ask(host="a.test", port=443, ssl=context, server_hostname="a.test")
        except OSError as err:
            return type(err).__name__
        except Exception as err:
            return type(err).__name__
        return got.status

    assert await status(clients) == 200
    for stranger in (None, names.authority):
        assert (await status(stranger) == 200) is not required


# ─── changes of a port


async def test_a_chain_that_comes_or_changes_leaves_other_connections_alone(
    gw: Rig, names: Names
) -> None:
    a = https("a", names.add("a.test"), sni="a.test")
    b = https("b", names.add("b.test"), sni="b.test")
    await gw.listen(a, port=443)
    await gw.serve(answer(200), host="a.test", chain="a", port=443, tls=True)
    reader, writer = await asyncio.open_connection(
        ADDRESS, 443 + OFFSET, ssl=names.client(), server_hostname="a.test"
    )

    async def ask() -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert b"connection: close" not in head.lower()
        return head.split(b" ")[1]

    assert await ask() == b"200"
    for chains in (
        (a, b),
        (a, msgspec.structs.replace(b, server_names=("c.test",))),
        (a,),
        (a, Chain("tcp", ("t.test",), passthrough=True, tcp=())),
    ):
        await gw.listen(*chains, port=443)
        await asyncio.sleep(0.3)
        assert await ask() == b"200"
    await asyncio.sleep(2.5)  # longer than anything is drained
    assert await ask() == b"200"
    writer.transport.abort()


def test_a_host_or_a_rule_is_no_part_of_a_listener() -> None:
    """All that a listener is made of is its chains."""
    one = gateway_listener(VS, ADDRESS, 80, [Chain("http")])
    assert one == gateway_listener(VS, ADDRESS, 80, [Chain("http")])
    assert one.collections == (chain_collection(VS, 80, "http"),)
    with pytest.raises(ValueError, match="no chain"):
        gateway_listener(VS, ADDRESS, 80, [])


async def test_a_chain_that_is_gone_before_it_was_asked_for_is_not_waited_for(gw: Rig) -> None:
    await gw.listen(Chain("one"))
    engine = gw.ads.engines["se-1"]
    gw.ads.publish(GROUP, [gateway_listener(VS, ADDRESS, 80, [Chain("two")], OFFSET)], [])
    sequence = gw.ads.publish(
        GROUP, [gateway_listener(VS, ADDRESS, 80, [Chain("one")], OFFSET)], []
    )
    await until(lambda: engine.acknowledged >= sequence)


async def test_hosts_are_served_while_chains_come_and_go(gw: Rig, names: Names) -> None:
    """No answer is lost on new connections either."""
    chains = [https(n, names.add(f"{n}.test"), sni=f"{n}.test") for n in ("a", "b", "c")]
    await gw.listen(*chains[:1], port=443)
    await gw.serve(answer(200), host="a.test", chain="a", port=443, tls=True)
    answers: Counter[str] = Counter()
    done = False
    context = names.client()

    async def client() -> None:
        while not done:
            try:
                got = await gw.ask(
                    host="a.test", port=443, ssl=context, server_hostname="a.test",
                    headers={"connection": "close"},
                )  # fmt: skip
                answers[str(got.status)] += 1
            except Exception as err:
                answers[repr(err)] += 1

    clients = [asyncio.create_task(client()) for _ in range(3)]
    for n in range(20):
        await gw.listen(*chains[: 1 + n % 3], port=443)
        await asyncio.sleep(0.2)
    done = True
    await asyncio.gather(*clients)
    assert set(answers) == {"200"}


# ─── TLS and TCP


class Bytes:
    """Servers of bare TCP that say who they are and then echo."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []

    async def start(self, name: str, tls: ssl.SSLContext | None = None) -> Backend:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(f"{name}\n".encode())
            with contextlib.suppress(OSError):
                while data := await reader.read(1000):
                    writer.write(data)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        self._servers.append(server)
        self.ports[name] = server.sockets[0].getsockname()[1]
        return Backend(f"default/{name}/80")

    def clusters(self, *backends: Backend) -> list[Any]:
        out = []
        for one in backends:
            assert one.backend is not None
            at = ("127.0.0.1", self.ports[one.backend.split("/")[1]])
            out.append(gateway_cluster(one, [at]))
        return out

    def stop(self) -> None:
        for server in self._servers:
            server.close()


@pytest_asyncio.fixture
async def tcp() -> AsyncIterator[Bytes]:
    servers = Bytes()
    yield servers
    servers.stop()


async def hello(
    port: int, *, tls: ssl.SSLContext | None = None, sni: str = "", first: bytes = b""
) -> str:
    """The first line of a server, and that it echoes; "" when it says nothing."""
    more: dict[str, Any] = {"ssl": tls, "server_hostname": sni} if tls else {}
    try:
        reader, writer = await asyncio.open_connection(ADDRESS, port + OFFSET, **more)
        writer.write(first)
        line = (await asyncio.wait_for(reader.readline(), 5)).decode().strip()
        if line:
            writer.write(b"ping")
            assert await asyncio.wait_for(reader.readexactly(4), 5) == b"ping"
        writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError):
        return ""
    return line


def server_tls(authority: Authority, *dns: str) -> ssl.SSLContext:
    pair = authority.issue(dns[0].replace("*", "any"), dns=dns)
    out = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    out.load_cert_chain(pair.certificate, pair.key)
    return out


async def test_https_passthrough_and_termination_share_a_port(
    gw: Rig, names: Names, tcp: Bytes
) -> None:
    through = await tcp.start("through", server_tls(names.authority, "through.test"))
    ended = await tcp.start("ended")
    chains = (
        https("web", names.add("web.test"), sni="web.test"),
        Chain("through", ("through.test", "*.through.test"), passthrough=True, tcp=(through,)),
        Chain("ended", ("ended.test",), ChainTls((names.add("ended.test"),)), tcp=(ended,)),
    )
    await gw.publish(tcp.clusters(through, ended))
    await gw.listen(*chains, port=443)
    await gw.serve(answer(200), host="web.test", chain="web", port=443, tls=True)
    context = names.client()
    got = await gw.ask(host="web.test", port=443, ssl=context, server_hostname="web.test")
    assert got.status == 200
    for sni, name, certificate in (
        ("through.test", "through", "through.test"),
        ("a.b.through.test", "through", "through.test"),
        ("ended.test", "ended", "ended.test"),
    ):
        assert await hello(443, tls=context, sni=sni) == name
        assert await served(names, sni) == certificate
    assert await hello(443, tls=context, sni="other.test") == ""
    assert await hello(443, first=b"GET / HTTP/1.1\r\n\r\n") == ""


async def test_connections_are_shared_by_weight(gw: Rig, tcp: Bytes) -> None:
    a, b, c = [await tcp.start(name) for name in "abc"]
    shares = (
        msgspec.structs.replace(a, weight=3),
        msgspec.structs.replace(b, weight=1),
        msgspec.structs.replace(c, weight=0),
        Backend(None, 1),
    )
    await gw.publish(tcp.clusters(a, b, c))
    await gw.listen(Chain("tcp", tcp=shares), port=7000)
    met = Counter([await hello(7000) for _ in range(150)])
    assert set(met) == {"a", "b", ""}
    assert met["a"] > max(met["b"], met[""])
    await gw.listen(Chain("tcp", tcp=()), port=7000)
    assert await hello(7000) == ""


async def test_a_services_session_affinity_is_kept(gw: Rig, tcp: Bytes) -> None:
    for name in "abc":
        await tcp.start(name)
        await gw.echo(f"web.{name}")
    several, web = Backend("default/several/80"), Backend("default/web/80")
    endpoints = [("127.0.0.1", port) for port in tcp.ports.values()]
    await gw.publish([gateway_cluster(several, endpoints, sticky=True)])
    await gw.listen(Chain("tcp", tcp=(several,)), port=7000)
    assert len({await hello(7000) for _ in range(12)}) == 1
    await gw.listen()
    await gw.serve(to(web))
    await gw.publish([gateway_cluster(web, gw.endpoints(web), sticky=True)])
    assert len({(await gw.ask()).by for _ in range(12)}) == 1


# ─── UDP


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(self.name.encode(), address)


class _Client(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[str] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.got.put_nowait(data.decode())


async def test_udp_sessions_are_shared_by_weight_and_stay_where_they_are(gw: Rig) -> None:
    loop = asyncio.get_running_loop()
    backends, transports = [], []
    for name, weight in (("a", 3), ("b", 1), ("c", 0), ("d", 2)):
        transport, _ = await loop.create_datagram_endpoint(
            lambda name=name: _Datagrams(name),
            ("127.0.0.1", 0),  # type: ignore[misc]
        )
        transports.append(transport)
        one = Backend(f"default/{name}/53/UDP", weight)
        await gw.publish([gateway_cluster(one, [transport.get_extra_info("sockname")])])
        backends.append(one)
    await gw.publish([gateway_udp(VS, ADDRESS, 53, backends, OFFSET)])

    async def met() -> set[str]:
        transport, client = await loop.create_datagram_endpoint(
            _Client, remote_addr=(ADDRESS, 53 + OFFSET)
        )
        out = set()
        for _ in range(3):
            transport.sendto(b"?")
            out.add(await asyncio.wait_for(client.got.get(), 5))
        transport.close()
        return out

    seen = [await met() for _ in range(150)]
    assert all(len(one) == 1 for one in seen)
    count = Counter(one.pop() for one in seen)
    assert set(count) == {"a", "b", "d"}
    assert count["a"] > count["b"]
    for transport in transports:
        transport.close()


# ─── TLS to backends


async def https_echo(gw: Rig, name: str, context: ssl.SSLContext) -> Backend:
    return await gw.echo(name, ssl_context=context)


async def test_backends_are_met_over_tls_when_they_are_who_they_should_be(
    gw: Rig, authority: Authority, tmp_path: Path
) -> None:
    await gw.listen()
    seen: list[str] = []
    context = server_tls(authority, "backend.test", "*.wild.test")
    context.sni_callback = lambda _sock, name, _context: seen.append(name)  # type: ignore[assignment]
    web = await https_echo(gw, "web", context)
    ca = authority.ca.read_text()
    other = Authority(tmp_path / "other", "other").ca.read_text()

    def over(**more: Any) -> HttpRule:
        return to(msgspec.structs.replace(web, tls=BackendTls(**more)))

    for rule, by in (
        (over(hostname="backend.test", authorities=ca), "web"),
        (over(hostname="a.wild.test", authorities=ca), "web"),
        (over(hostname="other.test", authorities=ca), "503"),
        (over(hostname="other.test", authorities=ca, names=(("dns", "backend.test"),)), "web"),
        (over(hostname="backend.test", authorities=ca, names=(("dns", "no.test"),)), "503"),
        (over(hostname="backend.test", authorities=ca, names=(("uri", "spiffe://x"),)), "503"),
        (over(hostname="backend.test", authorities=other), "503"),
        (to(web), "503"),
    ):
        await gw.serve(rule)
        assert (await gw.ask()).by in (by, by.replace("503", "502")), rule
    assert {"backend.test", "a.wild.test", "other.test"} <= set(seen)


async def test_a_backend_is_shown_our_certificate(
    gw: Rig, names: Names, authority: Authority
) -> None:
    await gw.listen()
    context = server_tls(authority, "backend.test")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.ca)
    web = await https_echo(gw, "web", context)
    tls = BackendTls("backend.test", authority.ca.read_text())
    await gw.serve(to(msgspec.structs.replace(web, tls=tls)))
    assert (await gw.ask()).status in (502, 503)
    shown = msgspec.structs.replace(tls, certificate=names.add("us.test"))
    await gw.serve(to(msgspec.structs.replace(web, tls=shown)))
    await until(lambda: asked(gw))


async def asked(gw: Rig) -> bool:
    return (await gw.ask()).by == "web"


async def test_the_systems_authorities_are_known(gw: Rig, authority: Authority) -> None:
    await gw.listen()
    web = await https_echo(gw, "web", server_tls(authority, "backend.test"))
    await gw.serve(to(msgspec.structs.replace(web, tls=BackendTls("backend.test", system=True))))
    assert (await gw.ask()).status in (502, 503)


async def test_a_certificate_that_is_missing_keeps_nobody_else_waiting(
    gw: Rig, names: Names
) -> None:
    await gw.listen(https("a", names.add("a.test"), sni="a.test"), port=443)
    await gw.listen(
        https("a", "default/a.test", sni="a.test"),
        https("b", "default/not-there", sni="b.test"),
        https("c", names.add("c.test"), sni="c.test"),
        port=443,
    )
    await until(lambda: served_is(names, "c.test", "c.test"), 5)
    assert await served(names, "a.test") == "a.test"
    assert await served(names, "b.test") != "b.test"
    names.add("not-there")
    await gw.publish([gw.secrets[secret_name("default/not-there")]])
    await until(lambda: served_is(names, "b.test", "not-there"))
