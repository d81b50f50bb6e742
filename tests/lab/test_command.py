"""``akocore lab``: each command is a process of its own, the lab goes on between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from akocore.cli.demo import CRITICAL_CLASS
from akocore.cli.lab_bench import CONFIG, NETWORK, SETTING
from akocore.cli.lab_demo import APP
from akocore.engines.frr.process import Frr
from frr.conftest import PREFIX

pytestmark = pytest.mark.real

AKOCORE = [sys.executable, "-m", "akocore", "lab"]
NEW = ("--prefix", f"{PREFIX}cli-")


def akocore(*words: str, code: int = 0) -> str:
    done = subprocess.run([*AKOCORE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def state(frr: Frr, directory: Path) -> Iterator[tuple[str, str]]:
    """``--state`` of a lab that is taken down."""
    options = ("--state", str(directory / "lab"))
    yield options
    akocore("down", *options, *NEW)


def test_the_walkthrough_by_commands(state: tuple[str, str]) -> None:
    said = akocore("up", "--se", "2", "--vip", "10.10.16.224", *state, *NEW)
    assert "se-1 10.10.16.192, se-2 10.10.16.193" in said
    assert "10.10.16.224 has 2 next hops in the router's kernel after" in said

    said = akocore("scale", "--out", *state)
    assert "se-3 is added" in said
    assert "10.10.16.224 has 3 next hops" in said
    said = akocore("vip", "10.10.16.225", *state)
    assert "10.10.16.225 has 3 next hops" in said

    said = akocore("kill", "se-1", *state)
    assert "10.10.16.225 has 2 next hops" in said
    shown = akocore("status", *state)
    assert re.search(r"se-1 +10\.10\.16\.192 +killed +- +-", shown)
    assert re.search(r"se-2 +10\.10\.16\.193 +up +Established +\w+ +10\.10\.16\.224/32,", shown)
    assert "[20/0] via 10.10.16.193" in shown
    assert "2 dynamic neighbor(s), limit 32" in shown
    said = akocore("heal", "se-1", *state)
    assert "10.10.16.225 has 3 next hops" in said

    said = akocore("vip", "10.10.16.225", "--withdraw", *state)
    assert "10.10.16.225 has no next hop" in said
    said = akocore("exec", "client", "ip", "-br", "addr", "show", "eth0", *state)
    assert "10.10.15.10/24" in said

    assert "Run `akocore lab down`" in akocore("up", *state, *NEW, code=1)
    assert "there is no Service Engine se-9" in akocore("cut", "se-9", *state, code=1)
    assert "nothing of the lab is left" in akocore("down", *state, *NEW)
    assert not Path(state[1]).exists()
    assert "no lab is up" in akocore("status", *state, code=1)
    assert not [n for n in os.listdir("/run/netns") if n.startswith(NEW[1])]


def test_predictions_are_compared_with_the_kernel_and_with_connections(
    state: tuple[str, str],
) -> None:
    akocore("up", "--se", "3", "--vip", "10.10.16.224", *state, *NEW)
    said = akocore("verify", "10.10.16.224", "--tuples", "3000", "--flows", "300", *state)
    assert "3000 of 3000 tuples go where `ip route get` says" in said
    assert "300 of 300 connections came where they were expected" in said
    assert len(re.findall(r"^ +se-[123] +\d+ connections, +\d+ expected$", said, re.MULTILINE)) == 3
    assert "has no way to 10.10.16.239" in akocore("verify", "10.10.16.239", *state, code=1)


def test_a_controller_of_the_labs_own_follows_manifests(
    state: tuple[str, str], directory: Path
) -> None:
    manifests = directory / "manifests"
    manifests.mkdir()
    for name, text in (("n", NETWORK), ("s", SETTING), ("c", CRITICAL_CLASS), ("a", APP)):
        (manifests / f"{name}.yaml").write_text(text)
    (directory / "config.yaml").write_text(CONFIG)
    config = ("--config", str(directory / "config.yaml"))
    said = akocore("up", "--manifests", str(manifests), *config, "--handover", *state, *NEW)
    assert "a controller follows" in said
    where = ("--state", f"{state[1]}/controller")
    deadline = time.monotonic() + 20
    while "Established" not in (shown := akocore("status", *state)) or "[20/0]" not in shown:
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)
    assert "a controller drives this lab" in akocore("scale", "--out", *state, code=1)
    listed = subprocess.run(
        [*AKOCORE[:-1], "se", "list", *where], capture_output=True, text=True, check=True
    )
    assert "SE-Group-AKO-CRITICAL-se-1" in listed.stdout
    said = akocore("traffic", "10.10.16.224", "--seconds", "1", "--kept", "5", *state)
    assert re.search(
        r"^\d+ connections: \{'200': \d+\}; .*; 0 of 5 kept ones broken$", said, re.MULTILINE
    )


def test_the_bench_prints_its_figures_and_leaves_nothing(frr: Frr) -> None:
    prefix = f"{PREFIX}bench-"
    done = subprocess.run(
        [*AKOCORE, "bench", "--tries", "1", "--prefix", prefix],
        capture_output=True,
        text=True,
        check=False,
    )
    for figure in (
        "a Service Engine more: third hop, with traffic",
        "graceful scale-in: connections that failed",
        "a VIP more: manifest to route",
        "an engine cut off: until the last failure",
        "the controller killed: routes that changed",
    ):
        assert figure in done.stdout, done.stdout + done.stderr
    assert not [n for n in os.listdir("/run/netns") if n.startswith(prefix)]


def test_the_demo_tells_its_story_and_leaves_nothing(frr: Frr) -> None:
    prefix = f"{PREFIX}demo-"
    said = akocore("demo", "--prefix", prefix)
    assert re.search(r"enableRhi: true in critical.infra: 2 next hops after \d+ ms", said)
    assert re.search(r"Scale Out to 3: 3 next hops after \d+ ms", said)
    assert "via 10.10.16.194" in said
    spread = re.findall(r"^(10\.10\.16\.19\d) +(\d+) +(\d+)$", said, re.MULTILINE)
    assert len(spread) == 3
    assert all(served == expected for _, served, expected in spread)
    assert re.search(r"failed: +0 +at rest", said)
    assert "nothing of the lab is left\n" in said
    assert not [n for n in os.listdir("/run/netns") if n.startswith(prefix)]


def test_without_root_it_runs_in_a_user_namespace(
    frr: Frr, directory: Path, require_real: Callable[[bool, str], None]
) -> None:
    """As a user who is nobody here: no privilege outside, and every command in turn."""
    user = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"]
    allowed = subprocess.run([*user, "unshare", "-Urnm", "true"], capture_output=True, check=False)
    require_real(allowed.returncode == 0, "user namespaces")
    state = f"--state {directory}/lab"
    lab = " ".join(AKOCORE)
    script = f"""
        set -e
        id -u
        {lab} up --vip 10.10.16.224 --vip fd00:10:10:16::224 {state}
        {lab} status {state}
        {lab} scale --out {state}
        ! {lab} up {state}
        {lab} exec se-2 id -u {state}
        {lab} down {state}
    """
    done = subprocess.run([*user, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("65534\n")
    assert "fd00:10:10:16::224 has 2 next hops in the router's kernel" in done.stdout
    assert "fd00:10:10:16::224 has 3 next hops" in done.stdout
    assert "\n0\n" in done.stdout  # root inside
    assert done.stdout.endswith("nothing of the lab is left\n")
    assert "a lab is up in" in done.stderr
    assert not (directory / "lab").exists()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if _mentions(p, str(directory))]


def _mentions(cmdline: Path, word: str) -> bool:
    try:
        return word in cmdline.read_text()
    except OSError:
        return False


def test_without_root_and_user_namespaces_it_says_what_to_do(
    frr: Frr, directory: Path, require_real: Callable[[bool, str], None]
) -> None:
    """In a user namespace that may have no other inside, as on a machine that forbids them."""
    inner = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--", *AKOCORE]
    limit = "/proc/sys/user/max_user_namespaces"
    script = f'echo 1 > {limit} && exec "$@"'
    words = [*inner, "up", "--state", str(directory / "lab")]
    outer = ["unshare", "--user", "--map-root-user", "--", "sh", "-c", script, "sh", *words]
    done = subprocess.run(outer, capture_output=True, text=True, check=False)
    require_real(f"cannot create {limit}" not in done.stderr, "user namespaces")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "user namespaces are not allowed here" in done.stderr
    assert "Run as root, or allow them" in done.stderr
