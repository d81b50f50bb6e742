"""Service Engines over mutual TLS: real Envoys, real certificates."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.process import EngineError, find_envoy
from akocore.engines.envoy.remote import RemoteServer, TlsFiles
from akocore.engines.envoy.resources import (
    CDS,
    SRDS,
    cluster,
    floor_scope,
    listener,
    redirect_scope,
    secret,
)
from akocore.events import Events
from akocore.model import HostModel
from akocore.translate.tls import Certificate
from engines.authority import Authority, Pair
from engines.recorder import Recorder
from engines.remote_envoy import RemoteEnvoy

pytestmark = pytest.mark.real

PLACE = ("127.20.30.50", 18080)
TLS_PLACE = ("127.20.30.50", 18443)
OFFSET = 18000


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    try:
        find_envoy()
    except EngineError as err:
        if os.environ.get("AKOCORE_REQUIRE_REAL") == "1":
            raise
        pytest.skip(str(err))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="se-") as name:
        yield Path(name)


class Controller:
    """Discovery of one virtual service, at 127.0.0.1:`port`."""

    def __init__(self, scratch: Path, authority: Authority, name: str = "controller") -> None:
        self.home = scratch / name
        self.home.mkdir()
        self.authority = authority
        self.port = 0
        self.events = Events(lambda: datetime.now(UTC))
        self.pair = authority.issue(name, name, ips=["127.0.0.1"])
        self.ads = AdsServer(self.home / "xds.sock", lambda _group: None)
        for one in (
            listener("vs--0", PLACE[0], 80, tls=False, http2=False, port_offset=OFFSET),
            listener("vs--0", PLACE[0], 443, tls=True, http2=False, port_offset=OFFSET),
            floor_scope("vs--0", 80),
            floor_scope("vs--0", 443),
        ):
            self.ads.publish("Default-Group", [one], [])
        self.server: RemoteServer | None = None

    async def start(self) -> None:
        files = TlsFiles(self.pair.certificate, self.pair.key, self.authority.ca)
        self.server = RemoteServer(f"127.0.0.1:{self.port}", files, self.ads, self.events.say)
        self.port = self.server.bind()
        await self.server.start()
        self.ads.open()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop()
            self.server = None

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.port}"

    def said(self, reason: str) -> list[str]:
        return [event.note for event in self.events if event.reason == reason]

    def settled(self, name: str) -> bool:
        engine = self.ads.engines.get(name)
        return engine is not None and engine.answers


@pytest.fixture
def authority(scratch: Path) -> Authority:
    return Authority(scratch / "pki")


@pytest_asyncio.fixture
async def controller(scratch: Path, authority: Authority) -> AsyncIterator[Controller]:
    made = Controller(scratch, authority)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def envoys(scratch: Path, authority: Authority) -> Iterator[Callable[..., RemoteEnvoy]]:
    """Starts an engine ``name`` of the controllers ``at``, with a certificate of that name."""
    made: list[RemoteEnvoy] = []

    def start(name: str, *at: str, pair: Pair | None = None, **more: Any) -> RemoteEnvoy:
        one = RemoteEnvoy(
            scratch / "se", name, at, pair or authority.issue(name, name), authority.ca, **more
        )
        made.append(one)
        one.start()
        return one

    yield start
    for one in made:
        one.kill()


async def until(true: Callable[[], bool | Awaitable[bool]], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not (held if isinstance(held := true(), bool) else await held):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def answer() -> int:
    """The status code that a client of the virtual service gets; 0: no connection."""
    try:
        reader, writer = await asyncio.open_connection(*PLACE)
        writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError):
        return 0
    writer.close()
    return int(head[9:12])


# ─── the bootstrap


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], id="as it is"),
        pytest.param(["--controller", "ctl.test:18000,[::1]:18000"], id="names and addresses"),
        pytest.param(["--controller-name", "ctl.test"], id="another name in its certificate"),
        pytest.param(["--admin", "127.0.0.1:19000"], id="admin on TCP"),
        pytest.param(["--secrets", "SCRATCH"], id="files that are followed"),
    ],
)
def test_what_the_command_prints_is_valid_to_the_real_envoy(
    scratch: Path, authority: Authority, more: list[str]
) -> None:
    more = [word.replace("SCRATCH", str(scratch / "secrets")) for word in more]
    pair = authority.issue("se-1", "se-1")
    envoy = RemoteEnvoy(scratch, "se-1", ["127.0.0.1:18000"], pair, authority.ca, more=more)
    done = subprocess.run(
        [find_envoy().path, "--mode", "validate", "-c", envoy.write(), "--disable-hot-restart"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--name", "a/b"], "'a/b'", id="a name"),
        pytest.param(["--controller", "ctl.test"], "write HOST:PORT", id="a controller"),
        pytest.param(["--admin", "127.0.0.1"], "write HOST:PORT", id="an admin address"),
    ],
)
def test_what_can_not_be_is_said(scratch: Path, words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "akocore", "se", "bootstrap", "--name", "se-1"]
    command += ["--group", "g", "--controller", "c.test:1", "--cert", "c", "--key", "k"]
    done = subprocess.run(
        [*command, "--ca", "a", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr


# ─── who may come


async def test_who_connects_and_shows_no_certificate_is_cut(controller: Controller) -> None:
    async def cut(first: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
        writer.write(first)
        async with asyncio.timeout(30):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
        writer.close()

    record_that_goes_on = bytes([22, 3, 1, 2, 0, 1])
    await asyncio.gather(cut(b""), cut(record_that_goes_on))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param({"common_name": "se-1"}, id="common name"),
        pytest.param({"dns": ["other", "se-1"]}, id="DNS name"),
        pytest.param({"uris": ["spiffe://example.test/se/se-1"]}, id="URI"),
        pytest.param({"uris": ["spiffe://a.test/ns/x/se/Default-Group/se-1"]}, id="URI with group"),
    ],
)
async def test_an_engine_is_who_its_certificate_says(
    controller: Controller, envoys: Callable[..., RemoteEnvoy], names: dict[str, Any]
) -> None:
    envoys("se-1", controller.at, pair=controller.authority.issue("se-1", **names))
    await until(lambda: controller.settled("se-1"))
    assert controller.ads.engines["se-1"].group == "Default-Group"
    await until(lambda: answers(404))


async def answers(code: int) -> bool:
    return await answer() == code


@pytest.mark.parametrize(
    ("names", "why"),
    [
        pytest.param(
            {"common_name": "se-2"}, "its certificate is of se-2, not of 'se-1'", id="another's"
        ),
        pytest.param(
            {"dns": ["*", "se-1.test"]},
            "its certificate is of * or se-1.test, not of 'se-1'",
            id="nearly its name",
        ),
        pytest.param(
            {"uris": ["spiffe://a.test/sa/se-1"]},
            "its certificate is of nobody, not of 'se-1'",
            id="a URI of something else",
        ),
        pytest.param(
            {"common_name": "se-1", "uris": ["spiffe://a.test/se/Other-Group/se-1"]},
            "its certificate is for group Other-Group, not for 'Default-Group'",
            id="another group's",
        ),
    ],
)
async def test_an_engine_that_poses_as_another_is_told_why_it_is_refused(
    controller: Controller,
    envoys: Callable[..., RemoteEnvoy],
    names: dict[str, Any],
    why: str,
) -> None:
    envoy = envoys("se-1", controller.at, pair=controller.authority.issue("se-x", **names))
    await until(lambda: envoy.says(f"7, se-1 is refused: {why}"))
    (note,) = controller.said("IdentityRefused")
    assert f"An engine at ipv4:127.0.0.1 was refused: {why}" in note
    assert controller.ads.engines == {}
    assert await answer() == 0


async def test_an_engine_of_another_authority_or_without_a_certificate_gets_no_further_than_tls(
    controller: Controller,
    scratch: Path,
    envoys: Callable[..., RemoteEnvoy],
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = Authority(scratch / "other", "other").issue("se-1", "se-1")
    envoy = envoys("se-1", controller.at, pair=other)
    await until(lambda: envoy.says("stream to xds closed"))
    await until(lambda: "CERTIFICATE_VERIFY_FAILED" in capfd.readouterr().err)
    context = ssl.create_default_context(cafile=controller.authority.ca)
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port, ssl=context)
    assert await reader.read() == b""  # not one frame
    writer.transport.abort()
    await until(lambda: "PEER_DID_NOT_RETURN_A_CERTIFICATE" in capfd.readouterr().err)
    assert controller.ads.engines == {}


async def test_an_engine_asks_nobody_who_is_not_a_controller(
    controller: Controller, envoys: Callable[..., RemoteEnvoy]
) -> None:
    controller.authority.issue("controller", "se-9", dns=["se-9"])  # of the same authority
    envoy = envoys("se-1", controller.at)
    await until(lambda: envoy.says("SAN_matcher"))
    assert controller.ads.engines == {}
    pair = controller.authority.issue("se-2", "se-2")
    envoys("se-2", controller.at, pair=pair, more=["--controller-name", "se-9"])
    await until(lambda: controller.settled("se-2"))


async def test_nothing_but_discovery_is_offered(controller: Controller) -> None:
    pair = controller.authority.issue("se-1", "se-1")
    credentials = grpc.ssl_channel_credentials(
        controller.authority.ca.read_bytes(), pair.key.read_bytes(), pair.certificate.read_bytes()
    )
    async with grpc.aio.secure_channel(controller.at, credentials) as channel:
        for method in ("/akocore.v1alpha1.Control/Get", "/akocore.v1alpha1.Control/Explain"):
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await call(b'{"kind": "se"}')
            assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_taken_port_is_an_error_with_a_remedy(scratch: Path, authority: Authority) -> None:
    async def both() -> None:
        first, second = Controller(scratch, authority), Controller(scratch, authority, "second")
        await first.start()
        second.port = first.port
        with pytest.raises(EngineError, match="Give a free port to --xds-listen"):
            await second.start()
        await first.stop()

    asyncio.run(both())


# ─── what goes over the wire, and when it is cut


async def test_keys_go_over_the_wire_in_no_form_that_can_be_read(
    controller: Controller, envoys: Callable[..., RemoteEnvoy]
) -> None:
    served = controller.authority.issue("web", dns=["web.test"])
    chain, key = served.certificate.read_bytes(), served.key.read_bytes()
    later = (datetime.now(UTC) + timedelta(days=1)).timestamp()
    catalog = controller.ads.catalog("Default-Group")
    catalog.secret = lambda sni: secret(sni, Certificate(chain, key, later))
    wire = Recorder(controller.port)
    await wire.start()
    envoys("se-1", f"127.0.0.1:{wire.port}")
    await until(lambda: controller.settled("se-1"))
    context = ssl.create_default_context(cafile=controller.authority.ca)
    await until(lambda: answers(404))
    _, writer = await asyncio.open_connection(*TLS_PLACE, ssl=context, server_hostname="web.test")
    assert writer.get_extra_info("peercert")["subjectAltName"] == (("DNS", "web.test"),)
    writer.close()
    der = load_pem_private_key(key, None).private_bytes(
        Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    assert len(wire.heard) > 2000
    for readable in (key, key.splitlines()[1], der, b"vs--0", b"web.test", b"PRI * HTTP/2.0"):
        assert readable not in wire.heard
    await wire.cut()


async def test_an_engine_whose_controller_is_away_asks_the_next_and_serves_all_the_while(
    scratch: Path, authority: Authority, envoys: Callable[..., RemoteEnvoy]
) -> None:
    both = [Controller(scratch, authority, name) for name in ("one", "two")]
    for one in both:
        await one.start()
    envoys("se-1", *(one.at for one in both))
    await until(lambda: any(one.settled("se-1") for one in both))
    await until(lambda: answers(404))
    failures = 0

    async def ask() -> None:
        nonlocal failures
        while True:
            failures += await answer() != 404
            await asyncio.sleep(0.005)

    asking = asyncio.create_task(ask())
    for _ in range(2):  # there, and back again
        here, there = sorted(both, key=lambda one: "se-1" not in one.ads.engines)
        await here.stop()
        await until(lambda there=there: there.settled("se-1"))
        await here.start()
    asking.cancel()
    assert failures == 0
    for one in both:
        await one.stop()


async def test_an_engine_that_comes_back_is_sent_only_what_it_does_not_say_it_has(
    controller: Controller, envoys: Callable[..., RemoteEnvoy]
) -> None:
    backends = [cluster(f"d/s-{i}/80", [("127.0.0.1", 8080)]) for i in range(50)]
    controller.ads.publish("Default-Group", backends, [])
    envoy = envoys("se-1", controller.at)
    await until(lambda: controller.settled("se-1"))
    await until(lambda: answers(404))
    assert controller.ads.engines["se-1"].sent == 50 + 2 + 2
    changes = r"^(listener|cluster)_manager\.(listener|cluster)_(added|modified|removed)$"
    before = await envoy.stats(changes)
    await controller.stop()
    await until(lambda: not controller.ads.engines)
    controller.ads.publish("Default-Group", backends[:1], [(CDS, backends[1].name)])
    await controller.start()
    await until(lambda: controller.settled("se-1"))
    await until(lambda: not controller.ads.engines["se-1"].outstanding)
    removed = "cluster_manager.cluster_removed"
    assert await envoy.stats(changes) == before | {removed: before[removed] + 1}
    assert controller.ads.engines["se-1"].sent == 2  # Envoy doesn't say which scopes it has


async def test_a_host_that_goes_while_an_engine_is_away_is_gone_when_it_comes_back(
    controller: Controller, envoys: Callable[..., RemoteEnvoy]
) -> None:
    host = redirect_scope("vs--0", 80, HostModel("a.test", "", (), "", True), 443)
    controller.ads.publish("Default-Group", [host], [])
    envoys("se-1", controller.at)
    await until(lambda: controller.settled("se-1"))
    await until(lambda: answers(302))
    await controller.stop()
    await until(lambda: not controller.ads.engines)
    controller.ads.publish("Default-Group", [], [(SRDS, host.name)])
    assert await answer() == 302
    await controller.start()
    await until(lambda: answers(404))
    controller.ads.publish("Default-Group", [host], [])
    await until(lambda: answers(302))


async def test_an_engine_that_is_stuck_is_away_soon(
    controller: Controller, envoys: Callable[..., RemoteEnvoy]
) -> None:
    envoy = envoys("se-1", controller.at)
    await until(lambda: controller.settled("se-1"))
    envoy.send(signal.SIGSTOP)
    await until(lambda: not controller.ads.engines, 30)
    envoy.send(signal.SIGCONT)
    await until(lambda: controller.settled("se-1"))


# ─── rotation


async def test_a_controllers_new_certificate_and_authority_are_taken_without_a_restart(
    controller: Controller, scratch: Path, envoys: Callable[..., RemoteEnvoy]
) -> None:
    envoys("se-1", controller.at)
    await until(lambda: controller.settled("se-1"))
    old = await serial(controller)
    controller.authority.issue("controller", "controller", ips=["127.0.0.1"])
    assert await serial(controller) != old
    await until(lambda: bool(controller.said("XdsCertificateReplaced")))
    assert controller.settled("se-1")  # nobody who was there is disturbed
    kept = await serial(controller)
    controller.pair.key.write_bytes(controller.authority.issue("x", "x").key.read_bytes())
    assert await serial(controller) == kept
    await until(lambda: bool(controller.said("XdsCertificateRefused")))
    assert "is not the key of" in controller.said("XdsCertificateRefused")[0]
    controller.authority.issue("controller", "controller", ips=["127.0.0.1"])
    other = Authority(scratch / "other", "other")
    ours, theirs = controller.authority.ca.read_bytes(), other.ca.read_bytes()
    envoy = envoys("se-2", controller.at, pair=other.issue("se-2", "se-2"))
    await until(lambda: envoy.says("stream to xds closed"))
    controller.authority.ca.write_bytes(ours + theirs)
    await until(lambda: controller.settled("se-2"))


async def serial(controller: Controller) -> int:
    """The serial number of the certificate that a new connection meets."""
    pair = controller.authority.issue("client", "client")
    context = ssl.create_default_context(cafile=controller.authority.ca)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", controller.port, ssl=context)
    found = int(writer.get_extra_info("peercert")["serialNumber"], 16)
    writer.transport.abort()
    return found


async def test_an_engines_new_certificate_and_authority_are_taken_without_a_restart(
    controller: Controller, scratch: Path, envoys: Callable[..., RemoteEnvoy]
) -> None:
    wire = Recorder(controller.port)
    await wire.start()
    engine_side = Authority(scratch / "engine", "old")
    own = engine_side.issue("se-1", "se-1")
    controller.authority.ca.replace(engine_side.home / "trusted.crt")
    controller.authority.ca.write_bytes(engine_side.ca.read_bytes())
    envoy = RemoteEnvoy(
        scratch / "se",
        "se-1",
        [f"127.0.0.1:{wire.port}"],
        own,
        engine_side.home / "trusted.crt",
        more=["--secrets", str(scratch / "secrets")],
    )
    envoy.start()
    await until(lambda: controller.settled("se-1"))
    await wire.cut()
    await until(lambda: not controller.ads.engines)
    new = Authority(scratch / "new", "new")  # of everybody
    controller.authority.ca.write_bytes(new.ca.read_bytes())
    for theirs, ours in (
        (new.issue("controller", "c", ips=["127.0.0.1"]), controller.pair),
        (new.issue("se-1", "se-1"), own),
    ):
        theirs.key.replace(ours.key)
        theirs.certificate.replace(ours.certificate)
    await wire.start()
    await until(lambda: envoy.says("CERTIFICATE_VERIFY_FAILED"))
    assert controller.ads.engines == {}
    new.ca.replace(engine_side.home / "trusted.crt")
    await until(lambda: controller.settled("se-1"))
    envoy.kill()
    await wire.cut()
