"""``akocore lab``: the walkthrough's network on this machine.

Every command ends when it is done; the lab stays up between them.  Nothing watches its daemons
then: what was killed stays killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from akocore.cli.lab_demo import demo

if TYPE_CHECKING:
    from akocore.lab.topology import Topology

__all__ = ["lab"]

lab = typer.Typer(
    help="The walkthrough's network on this machine: router, Service Engines, client, pods.",
    no_args_is_help=True,
)

StateOption = Annotated[
    Path | None, typer.Option(help="the lab's directory, short and open to others")
]
FrrOption = Annotated[Path | None, typer.Option(help="directory of FRR's daemons")]
PrefixOption = Annotated[str, typer.Option(help="how names of its namespaces begin")]
NameArgument = Annotated[str, typer.Argument(help="a Service Engine, as se-1")]


def _directory(state: Path | None) -> Path:
    if state is not None:
        return state.absolute()
    if os.geteuid() == 0:
        return Path("/run/akocore-lab")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "akocore-lab"


def _guarded(action: Callable[[], None]) -> None:
    """Run ``action``; what it raises for the user is a line and exit code 1."""
    from akocore.engines.frr.addresses import AddressError
    from akocore.engines.frr.process import FrrError
    from akocore.engines.frr.session import SessionError
    from akocore.engines.frr.vty import VtyError
    from akocore.engines.handover import HandoverError
    from akocore.lab.namespaces import LabError

    try:
        action()
    except (AddressError, FrrError, HandoverError, LabError, SessionError, VtyError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err


def _with(
    state: Path | None,
    frr_dir: Path | None,
    action: Callable[[Topology], Coroutine[Any, Any, None]],
    *,
    new: str = "",
    handover: bool = False,
) -> None:
    """``action`` on the lab of ``state``; ``new``: on a new one, whose namespaces begin so."""
    import asyncio

    from akocore.engines.frr.process import find_frr
    from akocore.lab.topology import Plan, Topology

    directory = _directory(state)

    async def run() -> None:
        frr = find_frr(frr_dir)
        if new:
            topology = Topology(directory, frr, Plan(prefix=new, handover=handover))
        else:
            topology = Topology.open(directory, frr)
        try:
            await action(topology)
        finally:
            topology.release()

    if os.geteuid() == 0:
        _guarded(lambda: asyncio.run(run()))
    else:
        _guarded(lambda: _inside(directory, frr_dir, bool(new)))


def _inside(directory: Path, frr_dir: Path | None, new: bool) -> None:
    """This very command, without root: inside the user namespace of the lab."""
    import shutil

    from akocore.engines.frr.process import find_frr
    from akocore.lab.namespaces import LabError
    from akocore.lab.rootless import find_holder, hold, let_go, run_inside

    find_frr(frr_dir)
    holder = hold(directory) if new else find_holder(directory)
    if holder is None:
        raise LabError(f"no lab is up in {directory}. Run `akocore lab up`.")
    code = run_inside(holder, sys.argv[1:])
    if new and code:
        let_go(holder)
        shutil.rmtree(directory, ignore_errors=True)
    raise typer.Exit(code)


@lab.command()
def up(
    se: Annotated[int, typer.Option(help="Service Engines", min=0, max=32)] = 2,
    vip: Annotated[list[str] | None, typer.Option(help="a VIP; may be repeated")] = None,
    state: StateOption = None,
    frr_dir: FrrOption = None,
    prefix: PrefixOption = "ako-",
    handover: Annotated[
        bool, typer.Option("--handover", help="no connection breaks when Service Engines change")
    ] = False,
    manifests: Annotated[
        Path | None,
        typer.Option(help="a directory that a controller follows, which makes Service Engines"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="of that controller")] = None,
) -> None:
    """Bring the lab up: client, upstream router, Service Engines that announce the VIPs, pods."""
    import time

    vips = vip or []
    if manifests is not None:
        words = [str(manifests.absolute()), "--prefix", prefix]
        words += ["--handover"] if handover else []
        words += ["--config", str(config.absolute())] if config is not None else []
        words += ["--frr-dir", str(frr_dir)] if frr_dir is not None else []
        _with(state, frr_dir, lambda topology: _follow(topology, words), new=prefix)
        return

    async def action(topology: Topology) -> None:
        start = time.perf_counter()
        await topology.up(se, vips)
        network = next(iter(topology.plan.networks))
        engines = [
            f"{e.name} {topology.address(e.number, network)}" for e in topology.engines.values()
        ]
        typer.echo(f"up after {time.perf_counter() - start:.2f} s: {', '.join(engines) or 'no SE'}")
        for one in vips if se else ():
            await topology.until_hops(one, se)
            took = time.perf_counter() - start
            typer.echo(f"{one} has {se} next hops in the router's kernel after {took:.2f} s")

    _with(state, frr_dir, action, new=prefix, handover=handover)


async def _follow(topology: Topology, words: list[str]) -> None:
    """A lab whose controller goes on in the background."""
    from akocore.lab.controlled import Controlled

    directory = topology.directory
    made = Controlled(directory, topology.frr)
    await made.start(*words, "--state", str(directory))
    typer.echo(
        f"a controller follows {words[0]}; ask it with --state {directory / 'controller'}, as in"
        f" `akocore get vs --state {directory / 'controller'}`; it ends with `akocore lab down`"
    )


@lab.command(hidden=True)
def controller(
    manifests: Annotated[Path, typer.Argument(help="directory of manifests")],
    state: StateOption = None,
    frr_dir: FrrOption = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    prefix: PrefixOption = "ako-",
    handover: Annotated[bool, typer.Option("--handover")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML")] = None,
    upstream_bfd: Annotated[int, typer.Option(help="ms; the router's, 3 times")] = 0,
) -> None:
    """Be the controller of a new lab; `up --manifests` starts it in the background."""
    import asyncio

    import msgspec

    from akocore.config import ConfigError, load_config
    from akocore.engines.envoy.process import EngineError, find_envoy
    from akocore.engines.frr.config import Bfd
    from akocore.engines.frr.process import find_frr
    from akocore.lab.controlled import control
    from akocore.lab.topology import Plan
    from akocore.observe.logs import LogFormat, LogLevel, configure

    configure(LogFormat.TEXT, LogLevel.INFO)
    plan = Plan(prefix=prefix, handover=handover)
    if upstream_bfd:
        bfd = Bfd(transmit_ms=upstream_bfd, receive_ms=upstream_bfd, multiplier=3)
        plan = msgspec.structs.replace(
            plan, upstream=msgspec.structs.replace(plan.upstream, bfd=bfd)
        )

    def go() -> None:
        loaded, found = load_config(config), find_envoy(envoy)
        frr = find_frr(frr_dir)
        asyncio.run(control(_directory(state), manifests, plan, loaded, found, frr))

    try:
        _guarded(go)
    except (ConfigError, EngineError) as err:
        typer.echo(f"akocore: {err}", err=True)
        raise typer.Exit(1) from err


@lab.command()
def traffic(
    vip: Annotated[str, typer.Argument(help="as 10.10.16.224")],
    host: Annotated[str, typer.Option(help="that an Ingress has")] = "hello.avi.iberia.local",
    seconds: Annotated[float, typer.Option(help="how long", min=0.1)] = 5,
    rate: Annotated[float, typer.Option(help="new connections a second", min=0)] = 100,
    kept: Annotated[int, typer.Option(help="connections that are kept", min=0)] = 50,
    state: StateOption = None,
    frr_dir: FrrOption = None,
) -> None:
    """Connections of the lab's client to a VIP; exit code 1 when one fails."""

    async def action(topology: Topology) -> None:
        from akocore.cli.lab_bench import traffic_of

        if not await traffic_of(topology, vip, host, seconds, rate, kept):
            raise typer.Exit(1)

    _with(state, frr_dir, action)


@lab.command()
def verify(
    vip: Annotated[str, typer.Argument(help="as 10.10.16.224")],
    tuples: Annotated[int, typer.Option(help="compared with `ip route get`", min=0)] = 100_000,
    flows: Annotated[int, typer.Option(help="real connections", min=0, max=50_000)] = 5_000,
    state: StateOption = None,
    frr_dir: FrrOption = None,
) -> None:
    """Compare what `akocore ecmp` predicts with the router's kernel and with real connections."""

    async def action(topology: Topology) -> None:
        from akocore.cli.lab_bench import verify_of

        if not await verify_of(topology, vip, tuples, flows):
            raise typer.Exit(1)

    _with(state, frr_dir, action)


@lab.command()
def bench(
    tries: Annotated[int, typer.Option(help="of cutting a Service Engine off", min=1)] = 20,
    frr_dir: FrrOption = None,
    envoy: Annotated[Path | None, typer.Option(help="Envoy's binary")] = None,
    prefix: PrefixOption = "akobench-",
) -> None:
    """How fast routes follow and what it costs, in a lab of its own; 1 when a figure is missed."""
    from akocore.cli.lab_bench import bench_of, in_scratch

    codes: list[int] = []

    def go() -> None:
        codes.append(in_scratch(lambda scratch: bench_of(frr_dir, envoy, prefix, tries, scratch)))

    _guarded(go)
    raise typer.Exit(codes[0])


@lab.command()
def status(state: StateOption = None, frr_dir: FrrOption = None) -> None:
    """Show the Service Engines, and what the upstream router shows."""

    async def action(topology: Topology) -> None:
        await _engines(topology)
        typer.echo("\nupstream# show bgp summary\n" + await topology.show_bgp_summary())
        for vip in topology.vips:
            typer.echo(f"\nupstream# show ip route {vip}")
            typer.echo(await topology.show_route(vip) or "% Network not in table")
        typer.echo("\nupstream# show bfd neighbors\n" + await topology.show_bfd())

    _with(state, frr_dir, action)


async def _engines(topology: Topology) -> None:
    from akocore.engines.frr.addresses import AddressError
    from akocore.engines.frr.vty import VtyError

    network = next(iter(topology.plan.networks))
    rows = [["NAME", "ADDRESS", "STATE", "BGP", "BFD", "ANNOUNCED"]]
    for name, engine in topology.engines.items():
        row = [name, topology.address(engine.number, network), engine.state.value]
        try:
            found = await topology.observe(name)
        except (VtyError, AddressError):
            rows.append([*row, "-", "-", ""])
            continue
        bgp = [s.state if s.why is None else f"{s.state} ({s.why})" for s in found.bgp]
        routes = sorted({route for told in found.advertised.values() for route in told})
        rows.append([*row, ",".join(bgp), ",".join(s.state for s in found.bfd), ",".join(routes)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


async def _settled(topology: Topology, hops: int) -> None:
    """Say when the router's kernel has ``hops`` ways to each VIP.  A controller has its own."""
    if any(engine.role for engine in topology.engines.values()):
        return
    for vip in topology.vips:
        took = await topology.until_hops(vip, hops, within_s=15)
        typer.echo(f"{vip} has {hops} next hops {took * 1000:.0f} ms later")


def _announcing(topology: Topology) -> int:
    from akocore.lab.topology import EngineState

    return sum(engine.state is EngineState.UP for engine in topology.engines.values())


@lab.command()
def scale(
    out: Annotated[bool, typer.Option("--out", help="one Service Engine more")] = False,
    in_: Annotated[bool, typer.Option("--in", help="one less, gracefully")] = False,
    state: StateOption = None,
    frr_dir: FrrOption = None,
) -> None:
    """Add a Service Engine, or take the last one away without losing a connection to others."""
    if out == in_:
        typer.echo("akocore: give --out or --in.", err=True)
        raise typer.Exit(2)

    async def action(topology: Topology) -> None:
        from akocore.lab.namespaces import LabError

        if out:
            name = await topology.add_se()
            typer.echo(f"{name} is added")
        else:
            if not topology.engines:
                raise LabError("there is no Service Engine to take away.")
            name = list(topology.engines)[-1]
            await topology.remove_se(name)
            typer.echo(f"{name} is gone")
        await _settled(topology, _announcing(topology))

    _with(state, frr_dir, action)


def _change(
    state: Path | None,
    frr_dir: Path | None,
    change: Callable[[Topology], Coroutine[Any, Any, None]],
    done: str,
) -> None:
    """Make a change, say so, and when the router's kernel has it."""

    async def action(topology: Topology) -> None:
        await change(topology)
        typer.echo(done)
        await _settled(topology, _announcing(topology))

    _with(state, frr_dir, action)


@lab.command()
def kill(name: NameArgument, state: StateOption = None, frr_dir: FrrOption = None) -> None:
    """Kill a Service Engine's daemons, as a crash would."""
    _change(state, frr_dir, lambda topology: topology.kill_se(name), f"{name} is killed")


@lab.command()
def cut(name: NameArgument, state: StateOption = None, frr_dir: FrrOption = None) -> None:
    """Cut a Service Engine off the network; BFD finds out.

    BFD takes one to six seconds to come up after BGP; this waits for it first.
    """

    async def change(topology: Topology) -> None:
        await topology.until_watched()
        await topology.cut_se(name)

    _change(state, frr_dir, change, f"{name} is cut off")


@lab.command()
def heal(name: NameArgument, state: StateOption = None, frr_dir: FrrOption = None) -> None:
    """Bring a Service Engine back that was killed or cut off."""
    _change(state, frr_dir, lambda topology: topology.heal_se(name), f"{name} is back")


@lab.command()
def vip(
    address: Annotated[str, typer.Argument(help="as 10.10.16.225")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="take it away, gracefully")] = False,
    state: StateOption = None,
    frr_dir: FrrOption = None,
) -> None:
    """Announce one more VIP from every Service Engine, or withdraw one."""

    async def action(topology: Topology) -> None:
        if withdraw:
            await topology.withdraw(address)
            took = await topology.until_hops(address, 0)
            typer.echo(f"{address} has no next hop {took * 1000:.0f} ms later")
        else:
            await topology.set_vips([*topology.vips, address])
            await _settled(topology, _announcing(topology))

    _with(state, frr_dir, action)


@lab.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    where: Annotated[str, typer.Argument(help="client, upstream, switch, pods, or se-N")],
    command: Annotated[list[str], typer.Argument(help="a command and its arguments")],
    state: StateOption = None,
    frr_dir: FrrOption = None,
) -> None:
    """Run a command in a namespace of the lab, as `akocore lab exec client curl 10.10.16.224`."""

    async def action(topology: Topology) -> None:
        from akocore.lab.namespaces import LabError

        if where not in topology.namespaces.names():
            names = ", ".join(topology.namespaces.names())
            raise LabError(f"there is no {where} in the lab; there is {names}.")
        words = topology.namespaces.command(where, command)
        topology.release()
        sys.stdout.flush()
        os.execvp(words[0], words)

    _with(state, frr_dir, action)


@lab.command()
def down(state: StateOption = None, prefix: PrefixOption = "ako-") -> None:
    """Remove the lab and all of its processes, also after a crash."""
    import asyncio
    import shutil

    from akocore.lab.controlled import end_controller
    from akocore.lab.rootless import find_holder, let_go
    from akocore.lab.topology import sweep

    directory = _directory(state)

    def go() -> None:
        if os.geteuid() == 0:
            end_controller(directory)
            asyncio.run(sweep(directory, prefix))
        elif (holder := find_holder(directory)) is not None:
            let_go(holder)
            shutil.rmtree(directory)
        directory.with_name(f"{directory.name}.log").unlink(missing_ok=True)  # of a controller

    _guarded(go)
    typer.echo("nothing of the lab is left")


lab.command()(demo)
