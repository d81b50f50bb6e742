"""What a running Envoy may do, and what it does when files or connections run out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from akocore.client_limits import ClientLimits
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.bootstrap import Tls, bootstrap
from akocore.engines.envoy.l4 import l4_listener
from akocore.engines.envoy.process import Controllers, EngineError, Engines, Envoy, find_envoy
from akocore.engines.envoy.resources import cluster
from akocore.engines.envoy.room import Room, files_of, here
from akocore.engines.envoy.user import find_user
from akocore.kube.admission import CAPABILITIES
from akocore.model import L4Pool
from engines.authority import Authority

MIB = 1 << 20
GROUP = "g"
VIP = "127.20.31.40"
NEXT = "127.20.31.41"
PORT = 18090


@pytest.fixture(scope="module")
def envoy() -> Envoy:
    try:
        return find_envoy()
    except EngineError as err:
        if os.environ.get("AKOCORE_REQUIRE_REAL") == "1":
            raise
        pytest.skip(str(err))


@pytest.fixture(params=["entered", "hidden"])
def run_dir(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Below a directory that other users may enter, and below one that they may not."""
    with tempfile.TemporaryDirectory(prefix="se-") as name:
        Path(name).chmod(0o711 if request.param == "entered" else 0o700)
        yield Path(name) / "engines"


async def until(true: Callable[[], bool | Awaitable[bool]], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while True:
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.05)


async def up(engines: Engines, name: str) -> bool:
    try:
        return bool(await engines.admin(name).stats(r"^server\.uptime$"))
    except EngineError:
        return False


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("files", "asked", "allowed"),
    [(1 << 20, 50_000, 50_000), (20_000, 50_000, 6325), (1024, 50_000, 256), (2, 9, 1)],
)
def test_connections_leave_files_for_endpoints(files: int, asked: int, allowed: int) -> None:
    room = Room(files)
    assert room.connections(asked) == allowed
    assert (str(files) in room.cut(asked)) == (allowed < asked)
    assert allowed * 2 <= files


def test_a_heap_leaves_memory_for_who_else_needs_it() -> None:
    assert Room(1, 0).heap(alone=True) == 0
    assert Room(1, 1024 * MIB).heap(alone=True) == 864 * MIB
    assert Room(1, 256 * MIB).heap(alone=True) == 128 * MIB
    assert Room(1, 1024 * MIB).heap(alone=False) == 512 * MIB


def test_what_is_here_is_what_the_kernel_says() -> None:
    assert here().files == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert 0 < here().memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_bootstrap_with_all_bounds_is_valid_to_the_real_envoy(
    envoy: Envoy, tmp_path: Path
) -> None:
    (tmp_path / "files").write_text("0")
    file = tmp_path / "b.json"
    text = bootstrap(
        *("se-1", GROUP, tmp_path / "x", tmp_path / "a"),
        alive=Path("alive"),
        heap=512 * MIB,
        files=Path("files"),
    )
    file.write_bytes(text)
    done = subprocess.run(
        [envoy.path, "--mode", "validate", "-c", file, "--disable-hot-restart"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (alive,) = json.loads(text)["static_resources"]["listeners"]
    assert alive["bypass_overload_manager"]


# ── who it is ───────────────────────────────────────────────────────────────────────────────


def need_user() -> pwd.struct_passwd:
    user, why = find_user(Path("/tmp/se-1/engines"))
    if user is None:
        if os.environ.get("AKOCORE_REQUIRE_REAL") == "1" and os.geteuid() == 0:
            pytest.fail(why)
        pytest.skip(why)
    return pwd.getpwuid(user.uid)


class House:
    """One Envoy of ours, the server that it asks, and an endpoint."""

    def __init__(self, run_dir: Path, envoy: Envoy, **more: Any) -> None:
        self.ads = AdsServer(run_dir.parent / "xds.sock", lambda _group: None)
        self.engines = Engines(run_dir, envoy, self.ads.socket, probe_s=1.0, **more)
        self.endpoint = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> House:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1000):
                    writer.write(data)
            writer.close()

        self._server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1000)
        self.endpoint = self._server.sockets[0].getsockname()[1]
        await self.ads.start(self.ads.service())
        self.ads.open()
        await self.engines.ensure(GROUP, ["se-1"])
        await until(lambda: "se-1" in self.ads.engines)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engines.stop_all(0)
        await self.ads.stop()
        assert self._server is not None
        self._server.close()

    @property
    def pid(self) -> int:
        pid = self.engines.running["se-1"].pid
        assert pid is not None
        return pid

    async def listen(self, *addresses: str, port: int = PORT, **limits: int) -> None:
        pool = L4Pool("echo", "default/echo/80/TCP")
        some = [
            l4_listener("vs", one, "TCP", port, pool, limits=ClientLimits(**limits))
            for one in addresses
        ]
        made = cluster("default/echo/80/TCP", [("127.0.0.1", self.endpoint)])
        sequence = self.ads.publish(GROUP, [made, *some], [])
        engine = self.ads.engines["se-1"]
        await until(lambda: engine.acknowledged >= sequence)
        assert engine.rejected == {}


@pytest_asyncio.fixture
async def house(run_dir: Path, envoy: Envoy) -> AsyncIterator[House]:
    async with House(run_dir, envoy) as made:
        yield made


async def says(address: str, port: int = PORT) -> bool:
    """Whether it is answered there."""
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(b"x")
                return await reader.read(1) == b"x"
            finally:
                writer.close()
    except OSError:
        return False


async def test_envoy_is_another_user_who_may_listen_at_low_ports_and_no_more(house: House) -> None:
    wanted = need_user()
    status = status_of(house.pid)
    assert set(status["Uid"].split()) == {str(wanted.pw_uid)}
    assert set(status["Gid"].split()) == {str(wanted.pw_gid)}
    assert status["Groups"] == ""
    for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
        assert int(status[kind], 16) == 1 << 10, kind
    assert status["NoNewPrivs"] == "1"
    assert house.engines.bounds.user == wanted.pw_name
    await house.listen(VIP, port=81)
    await until(lambda: says(VIP, 81))
    assert await house.engines.admin("se-1").ready()


async def test_its_directory_is_all_that_it_may_write_to(house: House, run_dir: Path) -> None:
    uid = need_user().pw_uid
    for path in list(run_dir.rglob("*")):  # noqa: ASYNC240
        own = run_dir / "se-1" in (path, *path.parents)
        assert own or path.is_socket() or path.stat().st_uid != uid, path
    assert (run_dir / "se-1").stat().st_uid == uid


async def test_its_private_key_is_handed_to_it_and_followed(
    run_dir: Path, envoy: Envoy, tmp_path: Path
) -> None:
    user = need_user()
    pki = Authority(tmp_path / "pki")
    pair = pki.issue("se-1")
    pair.key.chmod(0o600)
    tls = Tls(
        certificate=pair.certificate, key=pair.key, ca=pki.ca, secrets=run_dir.parent / "secrets"
    )
    at = Controllers((("127.0.0.1", 1),), tls)
    engines = Engines(run_dir, envoy, run_dir.parent / "xds.sock", controllers=at)
    await engines.ensure(GROUP, ["se-1"])
    try:
        (copy,) = (run_dir / "tls").glob("*.key")
        assert copy.read_bytes() == pair.key.read_bytes()
        assert (copy.stat().st_mode & 0o777, copy.stat().st_gid) == (0o640, user.pw_gid)
        await until(lambda: up(engines, "se-1"))
        new = pki.issue("another")
        new.key.replace(pair.key)
        await until(lambda: copy.read_bytes() == pair.key.read_bytes())
        log = (run_dir / "se-1.log").read_text()
        assert "Permission denied" not in log
    finally:
        await engines.stop_all(0)


async def test_who_has_engines_of_another_user_starts_no_other(run_dir: Path, envoy: Envoy) -> None:
    """Two users can't share an address and port: one would have no listener."""
    need_user()
    old = Engines(run_dir, envoy, run_dir.parent / "xds.sock")
    old._user = None
    await old.ensure(GROUP, ["se-1"])
    await until(lambda: up(old, "se-1"))
    pid = old.running["se-1"].pid
    old.release_all()
    new = Engines(run_dir, envoy, run_dir.parent / "xds.sock")
    try:
        await new.ensure(GROUP, ["se-1", "se-2"])
        assert new.running["se-1"].pid == pid
        assert "se-1, which is running" in new.bounds.why_ours
        second = new.running["se-2"].pid
        assert second is not None
        await until(lambda: up(new, "se-2"))
        assert status_of(second)["Uid"].split()[0] == "0"
    finally:
        await new.stop_all(0)


# ── what it does when there is no more ──────────────────────────────────────────────────────


async def test_one_address_that_is_full_leaves_its_neighbour_be(house: House) -> None:
    await house.listen(VIP, NEXT, connections=10)
    await until(lambda: says(NEXT))
    async with contextlib.AsyncExitStack() as stack:
        answered = 0
        for _ in range(15):
            reader, writer = await asyncio.open_connection(VIP, PORT)
            stack.callback(writer.close)
            writer.write(b"x")
            with contextlib.suppress(OSError):
                answered += await asyncio.wait_for(reader.read(1), 5) == b"x"
        assert answered == 10
        assert not await says(VIP)
        assert await says(NEXT)
    await until(lambda: says(VIP))


async def test_connections_stop_before_files_run_out(run_dir: Path, envoy: Envoy) -> None:
    async with House(run_dir, envoy, room=Room(400)) as house:
        await house.listen(VIP)
        await until(lambda: says(VIP))
        pid, held, answered = house.pid, [], 0
        for _ in range(160):
            reader, writer = await asyncio.open_connection(VIP, PORT)
            held.append(writer)
            writer.write(b"x")
            with contextlib.suppress(OSError, TimeoutError):
                answered += await asyncio.wait_for(reader.read(1), 0.5) == b"x"
            if answered + 5 < len(held):
                break
        assert answered == house.engines.bounds.connections == 100
        for writer in held:
            writer.close()
        await until(lambda: says(VIP))
        assert house.pid == pid


async def test_who_is_short_of_files_takes_no_more_until_there_are_some(
    run_dir: Path, envoy: Envoy
) -> None:
    """It has fewer than akocore thinks, and looks at what is left."""
    fewer = {"room": Room(1 << 20), "within": lambda _name: ["prlimit", "--nofile=1000", "--"]}
    async with House(run_dir, envoy, **fewer) as house:
        await house.listen(VIP)
        await until(lambda: says(VIP))
        held: list[asyncio.StreamWriter] = []

        async def more(count: int) -> None:
            for _ in range(count):
                _, writer = await asyncio.open_connection(VIP, PORT)
                held.append(writer)

        await more(380)
        for _ in range(15):
            await asyncio.sleep(0.4)
            used, limit = files_of(house.pid)
            if used > 0.9 * limit:
                break
            await more(8)
        await asyncio.sleep(1)
        assert limit == 1000
        assert not await says(VIP)
        record = house.engines.running["se-1"]
        assert (record.hangs, record.restarts) == (False, 0)
        for writer in held:
            writer.close()
        await until(lambda: says(VIP))


def test_the_limit_of_files_is_raised_for_it_alone(run_dir: Path, envoy: Envoy) -> None:
    code = f"""
import asyncio, resource
from pathlib import Path
from akocore.engines.envoy.process import Engines, Envoy
from akocore.engines.envoy.room import files_of

async def main():
    run_dir = Path({str(run_dir)!r})
    some = Engines(run_dir, Envoy(Path({str(envoy.path)!r}), {envoy.version!r}), run_dir / "x")
    await some.ensure("g", ["se-1"])
    pid = some.running["se-1"].pid
    while "envoy" not in Path(f"/proc/{{pid}}/cmdline").read_text().split(chr(0))[0]:
        await asyncio.sleep(0.02)
    print(files_of(pid)[1], some.bounds.connections)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    await some.stop_all(0)

resource.setrlimit(resource.RLIMIT_NOFILE, (500, 2000))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2000 500\n500\n"
    assert "event=connections_cut" in done.stderr
    assert "2000 open files" in done.stderr


def test_as_root_of_a_pod_it_can_be_made_another_user_and_ended(envoy: Envoy) -> None:
    """With no more capabilities than `akocore.kube.admission` lets a Service Engine have."""
    need_user()
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("setpriv is missing")
    code = f"""
import asyncio, sys
from pathlib import Path
from akocore.engines.envoy.admin import EngineError
from akocore.engines.envoy.bootstrap import Tls
from akocore.engines.envoy.process import Controllers, Engines, Envoy
from akocore.engines.envoy.room import files_of

async def main(at):
    tls = Tls(certificate=at / "crt", key=at / "key", ca=at / "ca", secrets=at / "secrets")
    envoy = Envoy(Path({str(envoy.path)!r}), {envoy.version!r})
    for _ in range(2):  # the second time the directory is there
        some = Engines(at / "envoy", envoy, at / "xds.sock",
                       controllers=Controllers((("127.0.0.1", 1),), tls))
        await some.ensure("g", ["se-1"])
        async with asyncio.timeout(20):
            while not (at / "envoy/se-1/admin").exists():
                await asyncio.sleep(0.05)
        pid = some.running["se-1"].pid
        assert files_of(pid)[0] > 5, files_of(pid)
        assert await some.admin("se-1").stats("server.live")
        status = Path(f"/proc/{{pid}}/status").read_text()
        print(status.split("Uid:")[1].split()[0], status.split("CapEff:")[1].split()[0])
        await some.stop_all(0)
        assert not Path(f"/proc/{{pid}}").exists()
        assert not (at / "envoy/se-1").exists()

asyncio.run(main(Path(sys.argv[1])))
"""
    caps = ",".join(f"+{name.lower()}" for name in CAPABILITIES)
    with tempfile.TemporaryDirectory(prefix="se-") as name:
        home = Path(name)
        home.chmod(0o755)
        pair = (pki := Authority(home / "pki")).issue("se-1")
        for file, to in ((pair.certificate, "crt"), (pair.key, "key"), (pki.ca, "ca")):
            file.replace(home / to)
        limits = [f"--{kind}=-all,{caps}" for kind in ("bounding-set", "inh-caps")]
        done = subprocess.run(
            [setpriv, *limits, "--no-new-privs", sys.executable, "-c", code, name],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        uid = need_user().pw_uid
        assert done.stdout == f"{uid} 0000000000000400\n" * 2
