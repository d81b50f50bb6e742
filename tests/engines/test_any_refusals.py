"""Whatever an Envoy refuses, all else is served: asked for host by host, never read from an ack.

Random histories of hosts, clusters, endpoints, certificates and listeners, some of them bad, are
written, edited, mended and removed; engines and the controller end and start anew.  After each
step everything good answers, on every engine, with its last version.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import cast

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import NameOID
from msgspec import Struct, field

from akocore.engines.envoy.admin import Admin
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.bootstrap import bootstrap
from akocore.engines.envoy.gateway import gateway_floor, gateway_listener, gateway_udp
from akocore.engines.envoy.gateway_cluster import gateway_cluster, secret_name
from akocore.engines.envoy.process import find_envoy
from akocore.engines.envoy.resources import (
    SDS,
    Encoded,
    cluster,
    cluster_name,
    floor_scope,
    listener,
    scope,
    secret,
    udp_cluster,
    udp_endpoints,
)
from akocore.model import HostModel, Pool, Route
from akocore.model_http import Backend, Chain, ChainTls, HttpMatch, HttpRule, TextMatch
from engines.gateway_rig import need_envoy
from engines.refusals import (
    BAD_CERTIFICATES,
    BAD_ENDPOINTS,
    BAD_LISTENERS,
    BAD_RULES,
    bad_rule,
    broken_ingress_host,
    certificate_of,
    host_of,
    rule_of,
)

pytestmark = pytest.mark.real

_HISTORIES = int(os.environ.get("AKOCORE_HISTORIES", "50"))
_FIRST = int(os.environ.get("AKOCORE_FIRST_HISTORY", "0"))
_ADDRESSES = {"a": "127.21.31.50", "b": "127.21.31.51"}  # of each group, which has one engine
_LASTING = ("an engine is away", "an engine is busy")
_ENDS = ("the controller ends", "an engine ends", "all ends", "streams end", *_LASTING)
_KINDS = ("host", "host", "host", "ingress", "cluster", "udp", "listener", "sni", "tls")


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


class Echo(asyncio.DatagramProtocol):
    """Tells its name to whoever asks, by UDP."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, _data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(self._name, addr)


class Thing(Struct):
    """One that somebody wants served.  ``version`` "": it is bad as it is now.

    ``asked``: hosts → versions, of all of it that is good; ``bad``: names of resources.
    """

    kind: str
    name: str
    port: int  # of its own, where it has one
    version: str = ""
    resources: dict[str, list[Encoded]] = field(default_factory=dict)  # by group
    secrets: dict[str, Encoded] = field(default_factory=dict)  # by the name that is asked for
    asked: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)


class World:
    """Two Envoys, a controller's half, and what is served.  ``made``: numbers used so far."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.things: dict[str, Thing] = {}
        self.away = ""  # group of an engine that has ended
        self.made = 0
        self.http: list[int] = []  # ports of servers that tell their version
        self.udp: list[int] = []
        self.story: list[str] = []
        self.chunk = 500  # resources in one response
        self._moved = asyncio.Event()  # an engine came, went, or answered
        self.ads = self._server()
        self._envoys: dict[str, asyncio.subprocess.Process] = {}
        self._base: dict[str, list[Encoded]] = {}
        self._published: dict[str, dict[tuple[str, str], Encoded]] = {g: {} for g in _ADDRESSES}

    # ── life ────────────────────────────────────────────────────────────────────────────────

    def _server(self) -> AdsServer:
        ads = AdsServer(
            self.home / "xds.sock", lambda _group: self._moved.set(), self._scopes_of, self.chunk
        )
        for group in _ADDRESSES:
            ads.catalog(group).secret = self.secret
        return ads

    async def _scopes_of(self, name: str) -> list[str]:
        return await Admin(self.home / f"{name}.sock").scopes()

    def secret(self, name: str) -> Encoded | None:
        return next((t.secrets[name] for t in self.things.values() if name in t.secrets), None)

    async def start(self) -> None:
        self.client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        loop = asyncio.get_running_loop()
        self._runners, self._transports = [], []
        for n in range(3):
            runner = web.ServerRunner(web.Server(_tell(f"v{n}")))
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            assert site._server is not None
            self.http.append(site._server.sockets[0].getsockname()[1])  # type: ignore[attr-defined]
            self._runners.append(runner)
            transport, _ = await loop.create_datagram_endpoint(
                lambda n=n: Echo(f"v{n}"),  # type: ignore[misc]
                local_addr=("127.0.0.1", 0),
            )
            self.udp.append(transport.get_extra_info("sockname")[1])
            self._transports.append(transport)
        for group, address in _ADDRESSES.items():
            self._base[group] = [
                gateway_listener("gw", address, 8080, [Chain("http")]),
                gateway_floor("gw", 8080, "http", ()),
                listener("shared", address, 8081, tls=False, http2=False),
                floor_scope("shared", 8081),
                listener("shared", address, 8443, tls=True, http2=False),
                floor_scope("shared", 8443),
            ]
        await self.ads.start(self.ads.service())
        self.publish()
        self.ads.open()
        for group in _ADDRESSES:
            await self.start_engine(group)
        await self.settled()

    async def stop(self) -> None:
        for envoy in self._envoys.values():
            if envoy.returncode is None:
                envoy.send_signal(signal.SIGKILL)
                await envoy.wait()
        await self.ads.stop()
        await self.client.close()
        for runner in self._runners:
            await runner.cleanup()
        for transport in self._transports:
            transport.close()

    async def start_engine(self, group: str) -> None:
        name = f"se-{group}"
        config = self.home / f"{name}.json"
        config.write_bytes(bootstrap(name, group, self.ads.socket, self.home / f"{name}.sock"))
        with (self.home / f"{name}.log").open("ab") as log:
            self._envoys[group] = await asyncio.create_subprocess_exec(
                *(find_envoy().path, "-c", config, "--disable-hot-restart", "--concurrency", "1"),
                *("--drain-time-s", "1", "--drain-strategy", "immediate"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def end_engine(self, group: str) -> None:
        self._envoys[group].send_signal(signal.SIGKILL)
        await self._envoys[group].wait()
        name = f"se-{group}"
        await self._until(lambda: name not in self.ads.engines)

    def suspend_engine(self, group: str) -> None:
        self._envoys[group].send_signal(signal.SIGSTOP)

    def resume_engines(self) -> None:
        for group in set(self._envoys) - {self.away}:
            assert self._envoys[group].returncode is None, "\n".join(("it ended", *self.story))
            self._envoys[group].send_signal(signal.SIGCONT)

    async def end_controller(self) -> None:
        await self.ads.stop()

    async def start_controller(self) -> None:
        self._published = {group: {} for group in _ADDRESSES}
        self.ads = self._server()
        await self.ads.start(self.ads.service())
        self.publish()
        self.ads.open()

    # ── what is served ──────────────────────────────────────────────────────────────────────

    def publish(self) -> None:
        """Make the catalogs what is wanted."""
        for group, before in self._published.items():
            found = self._base[group] + [
                one for thing in self.things.values() for one in thing.resources.get(group, ())
            ]
            after = {(one.type_url, one.name): one for one in found}
            puts = [one for at, one in after.items() if before.get(at) is not one]
            self.ads.publish(group, puts, [at for at in before if at not in after])
            self._published[group] = after

    def publish_secrets(self, names: set[str]) -> None:
        """Send certificates again to engines that have asked for them, as `Realiser` does."""
        for engine in self.ads.engines.values():
            asked = {one for name in names for one in engine.names_of(name)}
            for name in asked | names:
                if name in engine.subscribed.get(SDS, ()) or (SDS, name) in engine.rejected:
                    one = self.secret(name)
                    puts = [one] if one is not None else []
                    self.ads.publish(engine.group, puts, [] if puts else [(SDS, name)])

    async def settled(self) -> None:
        def all_have() -> bool:
            engines = self.ads.engines.values()
            return len(engines) == len(_ADDRESSES) and not any(
                e.acknowledged < e.reached or e.clearing for e in engines
            )

        await self._until(all_have)

    async def _until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, "\n".join((self._waiting(), *self.story))
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), 0.1)

    def _waiting(self) -> str:
        return f"it never settled: {[(e, e.waits_for()) for e in self.ads.engines.values()]}"

    def rejected(self) -> set[str]:
        return {name for e in self.ads.engines.values() for _, name in e.rejected}

    # ── what answers ────────────────────────────────────────────────────────────────────────

    async def answer(self, group: str, thing: Thing, host: str) -> str:
        """The version that an engine serves of a host; else what happened."""
        address = _ADDRESSES[group]
        try:
            async with asyncio.timeout(3):
                if thing.kind == "udp":
                    return await _ask_udp(address, thing.port)
                if thing.kind in ("sni", "tls"):
                    port = 8443 if thing.kind == "sni" else thing.port
                    return await _certificate(address, port, host)
                port = {"host": 8080, "cluster": 8080, "ingress": 8081}.get(thing.kind, thing.port)
                return await self._ask(address, port, host)
        except (OSError, aiohttp.ClientError, TimeoutError) as err:
            return type(err).__name__

    async def _ask(self, address: str, port: int, host: str) -> str:
        url = f"http://{address}:{port}/"
        async with self.client.get(url, headers={"host": host}, allow_redirects=False) as got:
            if got.status == 302:
                return got.headers["location"].split("/")[2].partition(".test")[0]
            return await got.text() if got.status == 200 else str(got.status)

    async def wrong(self) -> dict[str, str]:
        """What good things don't answer as they are meant to, on any engine."""
        good = [
            (group, thing, host)
            for group in _ADDRESSES
            for thing in self.things.values()
            for host in thing.asked
        ]
        found = await asyncio.gather(*(self.answer(*one) for one in good))
        return {
            f"{thing.kind} {host} on {group}": f"{got}, not {thing.asked[host]}"
            for (group, thing, host), got in zip(good, found, strict=True)
            if got != thing.asked[host]
        }

    async def all_is_well(self) -> None:
        """Every good thing answers; what is refused is bad, and known to be refused."""
        await self.settled()
        wrong = await self.wrong()
        deadline = time.monotonic() + 10
        while wrong and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            wrong = await self.wrong()
        assert not wrong, f"{wrong}\n" + "\n".join(self.story)
        bad = {name for thing in self.things.values() for name in thing.bad}
        assert self.rejected() <= bad, "\n".join(self.story)

    # ── what changes ────────────────────────────────────────────────────────────────────────

    def make(self, thing: Thing, chance: Random, *, bad: bool) -> None:
        """Another version of a thing."""
        self.made += 1
        n = chance.randrange(3)
        thing.version = f"v{n}" if thing.kind in ("cluster", "udp") else f"v{self.made}"
        thing.asked, thing.bad = {}, set()
        _MAKE[thing.kind](self, thing, chance, thing.version, n, bad)
        if bad:
            thing.version = ""
        else:
            thing.asked[thing.name] = thing.version
        self.story.append(f"  {thing.kind} {thing.name} {thing.version or 'bad'}")

    def _host(self, thing: Thing, chance: Random, version: str, _n: int, bad: bool) -> None:
        rule = bad_rule(chance, version) if bad else rule_of(version)
        one = host_of("gw", 8080, thing.name, rule)
        self._all(thing, one)
        thing.bad |= {one.name} if bad else set()

    def _ingress(self, thing: Thing, chance: Random, version: str, n: int, bad: bool) -> None:
        thing.version = f"v{n}"
        backend = f"default/{thing.name}/80"
        pool = Pool("p", backend)
        model = HostModel(thing.name, "", (Route("", False, pool),), "", False)
        one = scope("shared", 8081, model)
        if bad:
            one = broken_ingress_host("shared", 8081, thing.name)
            thing.bad.add(one.name)
        self._all(thing, cluster(backend, [("127.0.0.1", self.http[n])]), one)

    def _cluster(self, thing: Thing, chance: Random, _version: str, n: int, bad: bool) -> None:
        backend = f"default/{thing.name}/80"
        ends = [("127.0.0.1", self.http[n])]
        if bad:
            ends.append(BAD_ENDPOINTS[chance.choice(sorted(BAD_ENDPOINTS))])
        match = HttpMatch(TextMatch("prefix", ""))
        rule = HttpRule("r", match, (Backend(backend),))
        made = gateway_cluster(Backend(backend), ends)
        self._all(thing, made, host_of("gw", 8080, thing.name, rule))
        thing.bad |= {made.name} if bad else set()

    def _udp(self, thing: Thing, chance: Random, _version: str, n: int, bad: bool) -> None:
        backend = f"default/{thing.name}/53/UDP"
        ends = [("127.0.0.1", self.udp[n])]
        if bad:
            ends = [BAD_ENDPOINTS[chance.choice(sorted(BAD_ENDPOINTS))]]
            thing.bad.add(cluster_name(backend))
        for group, address in _ADDRESSES.items():
            thing.resources[group] = [
                udp_cluster(backend),
                udp_endpoints(backend, ends),
                gateway_udp(thing.name, address, thing.port, [Backend(backend)]),
            ]

    def _listener(self, thing: Thing, chance: Random, version: str, _n: int, bad: bool) -> None:
        """A port of its own, with other hosts of which one may be bad."""
        place = chance.randrange(5)
        hosts = [thing.name if i == place else f"{i}.{thing.name}" for i in range(5)]
        wrong = {host for host in hosts if host != thing.name and chance.random() < 0.2}
        at = (thing.name, thing.port)
        scopes = [
            host_of(*at, host, bad_rule(chance, version) if host in wrong else rule_of(version))
            for host in hosts
        ]
        thing.asked = {} if bad else {host: version for host in hosts if host not in wrong}
        thing.bad |= {one.name for one, host in zip(scopes, hosts, strict=True) if host in wrong}
        for group, address in _ADDRESSES.items():
            made = gateway_listener(thing.name, address, thing.port, [Chain("http")])
            if bad:
                kind = BAD_LISTENERS[chance.choice(sorted(BAD_LISTENERS))]
                made = kind(thing.name, address, thing.port)
                thing.bad.add(made.name)
            floor = gateway_floor(thing.name, thing.port, "http", ())
            thing.resources[group] = [made, floor, *scopes]

    def _sni(self, thing: Thing, chance: Random, version: str, _n: int, bad: bool) -> None:
        made = BAD_CERTIFICATES[chance.choice(sorted(BAD_CERTIFICATES))]
        found = made() if bad else certificate_of(version)
        thing.secrets = {thing.name: secret(thing.name, found)}
        thing.bad |= {thing.name} if bad else set()
        self.publish_secrets({thing.name})

    def _tls(self, thing: Thing, chance: Random, version: str, _n: int, bad: bool) -> None:
        """A port with two certificates of its own: the other is bad now and then."""
        keys = (f"default/{thing.name}", f"default/{thing.name}-other")
        names = (thing.name, f"other.{thing.name}")
        for host, key, wrong in zip(names, keys, (bad, chance.random() < 0.3), strict=True):
            made = BAD_CERTIFICATES[chance.choice(sorted(BAD_CERTIFICATES))]
            name = secret_name(key)
            thing.secrets[name] = secret(name, made() if wrong else certificate_of(version))
            if wrong:
                thing.bad.add(name)
            else:
                thing.asked[host] = version
        chains = [
            Chain(f"c{i}", (name,), ChainTls((key,)))
            for i, (name, key) in enumerate(zip(names, keys, strict=True))
        ]
        for group, address in _ADDRESSES.items():
            floors = [gateway_floor(thing.name, thing.port, one.name, ()) for one in chains]
            made_port = gateway_listener(thing.name, address, thing.port, chains)
            thing.resources[group] = [made_port, *floors]
        self.publish_secrets(set(thing.secrets))

    @staticmethod
    def _all(thing: Thing, *resources: Encoded) -> None:
        for group in _ADDRESSES:
            thing.resources[group] = list(resources)


_MAKE = {
    "host": World._host,
    "ingress": World._ingress,
    "cluster": World._cluster,
    "udp": World._udp,
    "listener": World._listener,
    "sni": World._sni,
    "tls": World._tls,
}


def _tell(version: str):  # type: ignore[no-untyped-def]
    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=version)

    return answer


async def _ask_udp(address: str, port: int) -> str:
    loop = asyncio.get_running_loop()
    got: asyncio.Future[str] = loop.create_future()

    class Client(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _addr: tuple[str, int]) -> None:
            if not got.done():
                got.set_result(data.decode())

        def error_received(self, exc: Exception) -> None:
            if not got.done():
                got.set_result(type(exc).__name__)

    transport, _ = await loop.create_datagram_endpoint(Client, remote_addr=(address, port))
    try:
        transport.sendto(b"?")
        return await got
    finally:
        transport.close()


@cache
def _anybody() -> ssl.SSLContext:
    """Takes every certificate; made once, as that takes longer than the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _certificate(address: str, port: int, name: str) -> str:
    _, writer = await asyncio.open_connection(address, port, ssl=_anybody(), server_hostname=name)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        subject = x509.load_der_x509_certificate(der).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    finally:
        writer.transport.abort()


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    one = World(tmp_path)
    try:
        await one.start()
        yield one
    finally:
        await one.stop()


async def _step(world: World, chance: Random, what: str) -> None:
    """One step of a history.  It may end in the middle of what it has sent."""
    world.story.append(what)
    things = list(world.things.values())
    if what == "write":
        for thing in _new(world, chance, chance.randint(1, 10)):
            world.make(thing, chance, bad=chance.random() < 0.25)
    elif what == "edit":
        for thing in chance.sample(things, min(len(things), chance.randint(1, 8))):
            world.make(thing, chance, bad=chance.random() < 0.2)
    elif what == "mend":
        for thing in things:
            if not thing.version:
                world.make(thing, chance, bad=False)
    elif what == "remove":
        gone = chance.sample(things, min(len(things), chance.randint(1, 4)))
        for thing in gone:
            del world.things[thing.name]
            world.publish_secrets(set(thing.secrets))
    world.publish()
    if what in _ENDS:
        await _end(world, chance, what)


async def _end(world: World, chance: Random, what: str) -> None:
    """Something ends and begins anew.  Of what is left to begin, the next step is the first."""
    group = chance.choice(sorted(_ADDRESSES))
    if what in ("the controller ends", "all ends"):
        await world.end_controller()
    if what in ("an engine ends", "all ends", "an engine is away"):
        await world.end_engine(group)
    if what == "all ends":
        for other in _ADDRESSES.keys() - {group}:
            await world.end_engine(other)
    if what in ("the controller ends", "all ends"):
        await world.start_controller()
    if what == "an engine is away":
        world.away = group
    elif what in ("an engine ends", "all ends"):
        for one in _ADDRESSES if what == "all ends" else (group,):
            await world.start_engine(one)
    elif what == "streams end":
        world.ads.send_away()
    elif what == "an engine is busy":
        world.suspend_engine(group)


async def _ask(world: World) -> None:
    """Everything runs, and good things answer."""
    world.resume_engines()
    if world.away:
        await world.start_engine(world.away)
        world.away = ""
    await world.all_is_well()


def _new(world: World, chance: Random, count: int) -> list[Thing]:
    out = []
    for _ in range(count):
        kind = chance.choice(_KINDS)
        world.made += 1
        thing = Thing(kind, f"x{world.made}.test", 10_000 + world.made % 20_000)
        world.things[thing.name] = thing
        out.append(thing)
    return out


async def _history(world: World, seed: int) -> None:
    chance = Random(seed)
    world.story = [f"history {seed}"]
    world.chunk = chance.choice((1, 3, 10, 500))  # of the next controller as well
    world.ads.chunk = world.chunk
    steps = ["write", *chance.choices(("write", "edit", "mend", "remove"), k=chance.randint(2, 4))]
    if chance.random() < 0.5:
        steps.insert(chance.randint(1, len(steps)), chance.choice(_ENDS))
    for i, what in enumerate(steps):
        await _step(world, chance, what)
        following = steps[i + 1] if i + 1 < len(steps) else ""
        if what in _LASTING and following:
            continue  # it misses the next step
        if following not in _ENDS or chance.random() < 0.3:
            await _ask(world)
        else:  # in the middle of what was sent
            await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))
    world.story.append("all is removed")
    names = {name for thing in world.things.values() for name in thing.secrets}
    world.things.clear()
    world.publish_secrets(names)
    world.publish()
    await world.settled()


async def test_whatever_is_refused_all_else_answers(world: World) -> None:
    for seed in range(_FIRST, _FIRST + _HISTORIES):
        await _history(world, seed)


@pytest.mark.parametrize("later", [True, False], ids=["a host of its own", "another host's path"])
async def test_a_refused_cluster_takes_no_host_of_another_service_with_it(
    world: World, later: bool
) -> None:
    """Whether its cluster came in the response that is refused, or its other path has that one."""
    bad = cluster("default/bad/80", [BAD_ENDPOINTS["no address"]])
    good = cluster("default/good/80", [("127.0.0.1", world.http[0])])
    routes = [Route("", False, Pool("p", "default/good/80"))]
    if not later:
        routes.insert(0, Route("/bad", False, Pool("q", "default/bad/80")))
    one = scope("shared", 8081, HostModel("it.test", "", tuple(routes), "", False))
    thing = Thing("ingress", "it.test", 0, "v0", asked={"it.test": "v0"}, bad={bad.name})
    thing.resources = {group: [bad, good, one] for group in _ADDRESSES}
    world.things["it.test"] = thing
    world.publish()
    await world.all_is_well()


async def test_what_is_gone_when_it_is_refused_takes_nobody_with_it(world: World) -> None:
    """Of two in a response one was bad; when the engines say so there is just the good one."""
    await world.end_engine("b")
    world.suspend_engine("a")
    for name, rule in (("good", rule_of("v1")), ("bad", BAD_RULES["no expression"](rule_of("v2")))):
        thing = Thing("host", f"{name}.test", 0)
        World._all(thing, host_of("gw", 8080, thing.name, rule))
        world.things[thing.name] = thing
    world.things["good.test"].asked["good.test"] = "v1"
    world.publish()
    del world.things["bad.test"]
    world.publish()
    world.away = "b"
    await _ask(world)
