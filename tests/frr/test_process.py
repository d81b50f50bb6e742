"""A router's daemons as processes, with the real FRR."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from akocore.engines.frr.config import DAEMONS, RouterConfig, render
from akocore.engines.frr.process import Frr, FrrError, Router, end, find_frr

CONFIG = render(RouterConfig(name="se-1", router_id="10.0.0.1", local_as=5000))
CRASH_LOGS = Path("/var/tmp/frr")


async def until(true: Callable[[], bool], within_s: float = 8) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


def pids(router: Router) -> dict[str, int]:
    found = {name: daemon.pid for name, daemon in router.daemons.items()}
    assert None not in found.values()
    return {name: pid for name, pid in found.items() if pid is not None}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def left_behind(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.endswith(".log")}


# ─── the programs


def test_a_directory_without_daemons_is_refused_with_those_missing(tmp_path: Path) -> None:
    with pytest.raises(FrrError, match=r"--frr-dir: .* has no zebra, bfdd, bgpd\."):
        find_frr(tmp_path)
    with pytest.raises(FrrError, match="AKOCORE_FRR_DIR"):
        find_frr(environ={"AKOCORE_FRR_DIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("bgpd version 8.3.1", r"is FRR 8\.3\.1, and akocore needs 8\.4 or later"),
        ("bgpd version 7.5", r"is FRR 7\.5, and akocore needs 8\.4 or later"),
        ("nothing known", "doesn't answer --version as FRR does"),
    ],
)
def test_another_version_is_refused_with_the_one_found_and_the_one_needed(
    tmp_path: Path, said: str, error: str
) -> None:
    for name in DAEMONS:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(FrrError, match=error):
        find_frr(tmp_path)


@pytest.mark.parametrize("version", ["8.4", "8.4.4-1", "9.1.2", "10.0"])
def test_later_versions_are_taken(tmp_path: Path, version: str) -> None:
    for name in DAEMONS:
        (tmp_path / name).write_text(f"#!/bin/sh\necho 'bgpd version {version}'\n")
        (tmp_path / name).chmod(0o755)
    assert find_frr(tmp_path) == Frr(tmp_path, version)


# ─── life and death


@pytest.mark.real
async def test_daemons_start_and_stop_leaves_nothing_but_logs(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    router = Router(directory / "se-1", frr, namespace)
    await router.start(CONFIG)
    running = pids(router)
    assert list(running) == list(DAEMONS)
    for daemon in DAEMONS:
        assert await router.ask(daemon, ["show version"])
        assert router.told(daemon) == CONFIG.of(daemon)
        mode = (router.directory / f"{daemon}.conf").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600  # there may be passwords in it
    inside = subprocess.run(  # noqa: ASYNC221
        ["ip", "netns", "pids", namespace.name], capture_output=True, text=True, check=True
    ).stdout
    assert set(map(int, inside.split())) == set(running.values())
    await router.stop()
    assert all(gone(pid) for pid in running.values())
    assert left_behind(router.directory) == set()
    assert not [pid for name, pid in running.items() if (CRASH_LOGS / f"{name}.{pid}").exists()]


@pytest.mark.real
async def test_a_killed_daemon_is_back_at_once_and_the_record_says_why(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    changes: list[str] = []
    router = Router(directory / "se-1", frr, namespace, on_change=changes.append)
    await router.start(CONFIG)
    before = pids(router)
    os.kill(before["bgpd"], signal.SIGKILL)
    await until(lambda: router.daemons["bgpd"].restarts == 1)
    assert await router.until_ready("bgpd")
    after = router.daemons["bgpd"]
    assert after.pid != before["bgpd"]
    assert after.last_exit.startswith("SIGKILL; ")
    assert {n: p for n, p in pids(router).items() if n != "bgpd"} == {
        n: p for n, p in before.items() if n != "bgpd"
    }
    assert changes == [*DAEMONS, "bgpd", "bgpd"]
    assert not (CRASH_LOGS / f"bgpd.{before['bgpd']}").exists()
    await router.stop()


@pytest.mark.real
async def test_a_daemon_that_ends_at_once_is_tried_again_ever_slower(
    frr: Frr, directory: Path
) -> None:
    router = Router(directory / "se-1", frr, Path("/run/netns/akot-there-is-none"))
    await router.start(CONFIG)
    await until(lambda: router.daemons["zebra"].restarts >= 4)
    said = router.daemons["zebra"].last_exit
    assert said.startswith("exit code 1; nsenter: cannot open /run/netns/akot-there-is-none")
    await asyncio.sleep(0.3)
    assert router.daemons["zebra"].restarts <= 5
    assert router.daemons["bgpd"].restarts == 0  # it waits for zebra
    assert not await router.until_ready("zebra")
    await router.stop()
    assert left_behind(router.directory) == set()


@pytest.mark.real
async def test_a_daemon_that_hangs_is_killed(frr: Frr, directory: Path, namespace: Path) -> None:
    router = Router(directory / "se-1", frr, namespace, kill_after_s=0.2)
    await router.start(CONFIG)
    pid = pids(router)["bgpd"]
    os.kill(pid, signal.SIGSTOP)
    await router.stop()
    assert gone(pid)


# ─── adoption


def abandon(directory: Path, frr: Frr, namespace: Path) -> dict[str, int]:
    """Start a router in an akocore of its own and kill -9 that; the daemons' pids."""
    code = f"""
        import asyncio, json
        from pathlib import Path
        from akocore.engines.frr.config import RouterConfig, render
        from akocore.engines.frr.process import Frr, Router

        async def main():
            frr = Frr(Path({str(frr.directory)!r}), {frr.version!r})
            router = Router(Path({str(directory)!r}), frr, Path({str(namespace)!r}))
            await router.start(render(
                RouterConfig(name="se-1", router_id="10.0.0.1", local_as=5000)))
            print(json.dumps({{n: d.pid for n, d in router.daemons.items()}}), flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        found: dict[str, int] = json.loads(child.stdout.readline())
        child.kill()
    assert not any(gone(pid) for pid in found.values())
    return found


@pytest.mark.real
async def test_after_kill_9_of_akocore_the_next_one_adopts_its_daemons(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    found = abandon(directory / "se-1", frr, namespace)
    router = Router(directory / "se-1", frr, namespace)
    other = render(RouterConfig(name="se-1", router_id="10.0.0.2", local_as=5000))
    await router.start(other)
    assert pids(router) == found
    assert all(daemon.adopted for daemon in router.daemons.values())
    assert router.told("bgpd") == CONFIG.bgpd  # not the other: a session brings it there
    os.kill(found["bgpd"], signal.SIGKILL)
    await until(lambda: router.daemons["bgpd"].restarts == 1)
    assert "exit code isn't known" in router.daemons["bgpd"].last_exit
    await router.stop()
    assert all(gone(pid) for pid in found.values())


@pytest.mark.real
async def test_a_found_daemon_that_would_be_started_otherwise_is_replaced(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    found = abandon(directory / "se-1", frr, namespace)
    router = Router(directory / "se-1", Frr(frr.directory, "8.4.99"), namespace)
    await router.start(CONFIG)
    assert not set(found.values()) & set(pids(router).values())
    assert all(gone(pid) for pid in found.values())
    await router.stop()


@pytest.mark.real
async def test_a_recycled_pid_is_never_touched(frr: Frr, directory: Path, namespace: Path) -> None:
    found = abandon(directory / "se-1", frr, namespace)
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: ASYNC220
        file = directory / "se-1" / "bgpd.run"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": stranger.pid}))
        end(directory / "se-1")
        assert gone(found["zebra"])
        assert stranger.poll() is None
        os.kill(found["bgpd"], signal.SIGKILL)
        shutil.rmtree(CRASH_LOGS / f"bgpd.{found['bgpd']}")  # nobody knows of it any more
        router = Router(directory / "se-1", frr, namespace)
        await router.start(CONFIG)
        assert stranger.pid not in pids(router).values()
        await router.stop()
        assert stranger.poll() is None
        stranger.kill()


# ─── the directory


@pytest.mark.real
async def test_the_directory_belongs_to_one_akocore(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    first, second = (Router(directory / "se-1", frr, namespace) for _ in range(2))
    await first.start(CONFIG)
    with pytest.raises(FrrError, match=rf"another akocore \(pid {os.getpid()}\) runs"):
        await second.start(CONFIG)
    first.release()
    await second.start(CONFIG)
    await second.stop()


@pytest.mark.real
async def test_a_directory_that_frrs_user_can_not_enter_is_an_error_with_a_remedy(
    frr: Frr, namespace: Path
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="akot-") as closed,
        pytest.raises(FrrError, match=rf"can't enter {closed}.*chmod o\+x {closed}"),
    ):
        await Router(Path(closed) / "se-1", frr, namespace).start(CONFIG)


@pytest.mark.real
async def test_a_socket_path_that_is_too_long_is_an_error_with_a_remedy(
    frr: Frr, directory: Path
) -> None:
    router = Router(directory / ("d" * 100), frr)
    with pytest.raises(FrrError, match=r"too long for a unix socket.*at most 107.*--state"):
        await router.start(CONFIG)
    assert router.daemons == {}


@pytest.mark.real
async def test_a_directory_that_can_not_be_made_is_an_error_with_a_remedy(
    frr: Frr, directory: Path
) -> None:
    (directory / "file").write_text("")
    with pytest.raises(FrrError, match=r"can't be used: Not a directory.*--state"):
        await Router(directory / "file" / "run", frr).start(CONFIG)


@pytest.mark.real
async def test_a_router_listens_at_its_engines_address_alone(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    address, other = "10.10.16.192", "10.10.99.1"
    inside = ["ip", "-n", namespace.name]
    await asyncio.to_thread(subprocess.run, [*inside, "link", "set", "lo", "up"], check=True)
    for one in (address, other):
        added = [*inside, "addr", "add", f"{one}/32", "dev", "lo"]
        await asyncio.to_thread(subprocess.run, added, check=True)

    async def listens() -> set[str]:
        await asyncio.sleep(0.5)  # it listens once it has read its text
        asked = ["ip", "netns", "exec", namespace.name, "ss", "-Hltn", "sport = :179"]
        found = (await asyncio.to_thread(subprocess.check_output, asked)).decode()
        return {line.split()[3].rpartition(":")[0] for line in found.splitlines()}

    router = Router(directory / "se-1", frr, namespace, listen=[address])
    await router.start(CONFIG)
    assert await listens() == {address}
    await router.stop()
    anywhere = Router(directory / "se-2", frr, namespace)
    await anywhere.start(CONFIG)
    assert await listens() == {"0.0.0.0", "[::]"}
    await anywhere.stop()
