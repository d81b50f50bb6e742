"""Envoys of one machine get what is long for them one after another, a neighbour's at once."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from akocore.engines.envoy.ads import AdsServer, Engine
from akocore.engines.envoy.bootstrap import bootstrap
from akocore.engines.envoy.process import find_envoy
from akocore.engines.envoy.resources import (
    SRDS,
    Encoded,
    floor_scope,
    listener,
    scope,
    scope_name,
)
from akocore.model import HostModel, Pool, Route
from e2e.running import Client
from engines.gateway_rig import need_envoy, until

pytestmark = pytest.mark.real

GROUP, VS, ADDRESS, PORT = "Default-Group", "shared", "127.21.33.50", 8080
MANY = 4_000  # paths


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


def host(name: str, last: str, paths: int = 1) -> Encoded:
    """A host whose paths, ``last`` among them, answer 503: there is nothing behind."""
    named = [*(f"/many/{i}" for i in range(paths - 1)), last]
    routes = tuple(Route(path, False, Pool(f"pool-{path}", None)) for path in named)
    return scope(VS, PORT, HostModel(name, "", routes, "", False))


class Two:
    """Two Envoys of one group, and a controller's half that knows that they share a machine."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ads = AdsServer(home / "xds.sock", lambda _group: None)
        self.ads.one_machine = True
        self.envoys: dict[str, asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        await self.ads.start(self.ads.service())
        base = [listener(VS, ADDRESS, PORT, tls=False, http2=False), floor_scope(VS, PORT)]
        self.ads.publish(
            GROUP, [*base, host("big.test", "/old", MANY), host("small.test", "/old")], ()
        )
        self.ads.open()
        for name in ("se-1", "se-2"):
            config = self.home / f"{name}.json"
            config.write_bytes(bootstrap(name, GROUP, self.ads.socket, self.home / f"{name}.sock"))
            with (self.home / f"{name}.log").open("ab") as log:
                self.envoys[name] = await asyncio.create_subprocess_exec(
                    *(find_envoy().path, "-c", config, "--disable-hot-restart"),
                    *("--concurrency", "1"),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        await until(lambda: [e.answers for e in self.ads.engines.values()] == [True, True])
        await self.settled()

    async def stop(self) -> None:
        for envoy in self.envoys.values():
            if envoy.returncode is None:
                envoy.send_signal(signal.SIGKILL)
                await envoy.wait()
        await self.ads.stop()

    async def settled(self) -> None:
        await until(lambda: self.ads.acknowledged(GROUP) >= self.ads.catalog(GROUP).sequence > 0)

    def waiting(self) -> list[Engine]:
        """Who waits for the other one."""
        return [e for e in self.ads.engines.values() if e.held is not None and e.held.behind]

    async def all_answer(self, name: str, path: str) -> None:
        """Whichever of the two a connection comes to, when their workers have what they have."""

        async def thirty() -> bool:
            for _ in range(30):
                client = Client(PORT)
                status = await client.get(ADDRESS, name, path)
                client.close()
                if status != 503:
                    return False
            return True

        await until(thirty)


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    world = Two(tmp_path)
    try:
        await world.start()
        yield world
    finally:
        await world.stop()


async def test_what_is_long_waits_for_the_other_engine_and_a_neighbours_edit_does_not(
    two: Two,
) -> None:
    two.ads.publish(GROUP, [host("big.test", "/new", MANY)], ())
    [late] = two.waiting()
    before = [engine.sent for engine in two.ads.engines.values()]
    two.ads.publish(GROUP, [host("small.test", "/new")], ())
    assert [engine.sent - 1 for engine in two.ads.engines.values()] == before
    assert all(engine.held is not None for engine in two.ads.engines.values())
    assert late.acknowledged < two.ads.catalog(GROUP).sequence - 1
    await two.settled()
    assert not two.waiting()
    await two.all_answer("small.test", "/new")
    await two.all_answer("big.test", "/new")


async def test_an_engine_that_hangs_holds_the_other_one_up_for_half_a_second(two: Two) -> None:
    two.ads.publish(GROUP, [host("big.test", "/new", MANY)], ())
    [late] = two.waiting()
    assert late.held is not None
    other = two.envoys[late.held.behind]
    other.send_signal(signal.SIGSTOP)
    try:
        two.ads.publish(GROUP, [host("big.test", "/newer", MANY)], ())  # it may have been too fast
        [late] = two.waiting()
        sequence = two.ads.catalog(GROUP).sequence
        await until(lambda: late.acknowledged >= sequence)
    finally:
        other.send_signal(signal.SIGCONT)
    await two.settled()
    await two.all_answer("big.test", "/newer")


async def test_an_engine_that_goes_is_waited_for_no_more(two: Two) -> None:
    two.ads.publish(GROUP, [host("big.test", "/new", MANY)], ())
    [late] = two.waiting()
    assert late.held is not None
    gone = two.envoys[late.held.behind]
    gone.send_signal(signal.SIGKILL)
    await gone.wait()
    await two.settled()
    await two.all_answer("big.test", "/new")


async def test_what_is_taken_away_goes_after_what_waits(two: Two) -> None:
    two.ads.publish(GROUP, [host("big.test", "/new", MANY)], ())
    [late] = two.waiting()
    before = late.sent
    two.ads.publish(GROUP, (), [(SRDS, scope_name(VS, PORT, "small.test"))])
    assert (late.sent, late.held) == (before + 1, None)
    await two.settled()
    await two.all_answer("big.test", "/new")


async def test_what_is_new_goes_to_all_at_once(two: Two) -> None:
    two.ads.publish(GROUP, [host("bigger.test", "/new", MANY)], ())
    assert not two.waiting()
    await two.settled()
    await two.all_answer("bigger.test", "/new")
