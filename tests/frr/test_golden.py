"""A router in, FRR's configuration out: one self-contained YAML file a case.

``pytest --update-golden`` writes ``out:`` anew; read the difference.  Every text is then proven
by the real FRR: it is loaded, shown again, and reached by the changed lines from every other.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from akocore.engines.frr.config import DAEMONS, RouterConfig, render
from akocore.engines.frr.process import Frr, Router
from akocore.engines.frr.session import Session

CASES = sorted((Path(__file__).parent / "golden").glob("*.yaml"))

# What FRR doesn't show since it is its default.
UNSHOWN = (
    " / bgp network import-check",
    " / detect-multiplier 3",
    " / transmit-interval 300",
    " / receive-interval 300",
)


class Case(msgspec.Struct, forbid_unknown_fields=True, rename={"router": "in"}):
    """The skeleton of a file; a misspelt key is an error."""

    router: RouterConfig
    out: dict[str, str] | None = None


class _Literal(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else "")


_Literal.add_representer(str, _text)


def load(path: Path) -> Case:
    return msgspec.convert(yaml.safe_load(path.read_text()), Case)


def texts(router: RouterConfig) -> dict[str, str]:
    rendered = render(router)
    return {daemon: rendered.of(daemon) for daemon in DAEMONS}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_router_is_rendered_as_the_golden_says(
    path: Path, request: pytest.FixtureRequest
) -> None:
    case = load(path)
    got = texts(case.router)
    if request.config.getoption("--update-golden"):
        before = path.read_text().partition("\nout:")[0].rstrip("\n")
        dumped = yaml.dump({"out": got}, Dumper=_Literal, sort_keys=False, allow_unicode=True)
        path.write_text(f"{before}\n{dumped}")
    else:
        assert got == case.out


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_order_of_peers_and_vips_changes_nothing(path: Path) -> None:
    router = load(path).router
    turned = msgspec.structs.replace(
        router, peers=router.peers[::-1], vips=router.vips[::-1], snats=router.snats[::-1]
    )
    assert texts(turned) == texts(router)


def test_a_misspelt_key_of_a_router_is_an_error() -> None:
    plain: dict[str, Any] = {"name": "se-1", "routerId": "10.0.0.1", "localAs": 1}
    with pytest.raises(msgspec.ValidationError, match="unknown field `vip`"):
        msgspec.convert({"in": {**plain, "vip": []}}, Case)


@pytest.mark.parametrize("text", ["a\nneighbor 1.1.1.1 remote-as 1", "a\0b", " a", "a\tb"])
def test_a_text_that_would_be_more_than_its_line_is_an_error(text: str) -> None:
    router = load(CASES[0]).router
    (peer, *_) = load(Path(__file__).parent / "golden" / "ipv6-beside-ipv4.yaml").router.peers
    for field in ("label", "password"):
        bad = msgspec.structs.replace(peer, **{field: text})
        with pytest.raises(ValueError, match="no room for control characters"):
            render(msgspec.structs.replace(router, peers=(bad,)))


# ─── the real program


@pytest.mark.real
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_frrs_own_check_finds_no_fault(
    path: Path, frr: Frr, directory: Path, require_real: Callable[[bool, str], None]
) -> None:
    vtysh = shutil.which("vtysh")
    require_real(vtysh is not None, "vtysh")
    for daemon, text in texts(load(path).router).items():
        file = directory / f"{daemon}.conf"
        file.write_text(text)
        done = subprocess.run(
            [str(vtysh), "-C", "-f", file], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), daemon


def shown(running: str) -> set[str]:
    """Every line after its blocks, as FRR shows them, without its numbers of lists."""
    lines: set[str] = set()
    around: list[str] = []
    for line in running.splitlines():
        if line.strip() in ("", "!", "exit", "exit-address-family"):
            continue
        around = [*around[: len(line) - len(line.lstrip())], line.strip()]
        lines.add(re.sub(r" seq \d+ ", " ", " / ".join(around)))
    return lines


async def running(router: Router) -> dict[str, set[str]]:
    told = {}
    for daemon in DAEMONS:
        (answer,) = await router.ask(daemon, ["show running-config"])
        told[daemon] = shown(answer)
    return told


@pytest.mark.real
async def test_a_text_is_shown_again_and_reached_from_the_text_before(
    frr: Frr, directory: Path, namespace: Path
) -> None:
    """Each case from a fresh start, and each again by the lines that changed from the last."""
    cases = [load(path).router for path in CASES]
    fresh = []
    for number, case in enumerate(cases):
        router = Router(directory / f"f{number}", frr, namespace)
        await router.start(render(case))
        assert not any(daemon.restarts for daemon in router.daemons.values())
        fresh.append(await running(router))
        await router.stop()
        for daemon, text in texts(case).items():
            missing = shown(text) - fresh[-1][daemon]
            assert {m for m in missing if not m.endswith(UNSHOWN)} == set(), daemon
    session = Session(Router(directory / "se", frr, namespace))
    await session.start(cases[-1])
    try:
        for back in (False, True):
            for number, case in list(enumerate(cases))[:: -1 if back else 1]:
                await session.apply(case)
                assert await running(session.router) == fresh[number], (CASES[number].stem, back)
        assert all(daemon.restarts == 0 for daemon in session.router.daemons.values())
    finally:
        await session.stop()
