"""``akocore lab``: each command is a process of its own, the lab goes on between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
