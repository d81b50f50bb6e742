"""``akocore ecmp``: where routers send flows, and what a change of their next hops does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from akocore import Flows
    from akocore._fast.ecmp import HopGroup
    from akocore.ecmp import Distribution, Hops, Insertion, Interval, Moves, Tiers

__all__ = ["ecmp"]

ecmp = typer.Typer(
    help="Predict which next hop (Service Engine) a router picks, exactly as Linux does.",
    no_args_is_help=True,
)

FIELDS = ("src", "dst", "proto", "sport", "dport", "label")
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}


class Scheme(StrEnum):
    """How a router maps a hash to a hop. The first two are Linux'."""

    HASH_THRESHOLD = "hash-threshold"
    RESILIENT = "resilient"
    MODULO = "modulo"
    RENDEZVOUS = "rendezvous"
    MAGLEV = "maglev"


class Output(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


class TrafficName(StrEnum):
    """The names of `akocore.ecmp.Traffic`, which is not imported before it is needed."""

    RANDOM = "random"
    CLIENTS = "clients"
    NAT = "nat"


HopsArgument = Annotated[
    str, typer.Argument(metavar="HOPS", help="in the router's order, with weights: se-1,se-2=3")
]
AfterArgument = Annotated[str, typer.Argument(metavar="AFTER", help="the hops after the change")]
SeedOption = Annotated[int, typer.Option(help="net.ipv4.fib_multipath_hash_seed")]
PolicyOption = Annotated[int, typer.Option(help="fib_multipath_hash_policy: 0, 1 or 3")]
FieldsOption = Annotated[
    str, typer.Option(help="fib_multipath_hash_fields of policy 3, bits; 0x37 is the 5-tuple")
]
LocalOption = Annotated[bool, typer.Option("--local", help="flows that start on the router itself")]
SchemeOption = Annotated[Scheme, typer.Option(help="how the router maps hashes to hops")]
BucketsOption = Annotated[
    int,
    typer.Option(
        help="of a resilient table (default 128); slots of Maglev's (65537)", show_default=False
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]
FileOption = Annotated[
    str, typer.Option("--file", help="flows as CSV: src,dst,proto,sport,dport[,label]; - is stdin")
]
FlowsOption = Annotated[int, typer.Option("--flows", min=1, help="how many flows to make")]
TrafficOption = Annotated[TrafficName, typer.Option(help="what the flows look like")]
TrafficSeedOption = Annotated[int, typer.Option(help="which flows of their kind")]
VipsOption = Annotated[int, typer.Option(min=1, max=65536, help="addresses the flows go to")]
Ipv6Option = Annotated[bool, typer.Option("--ipv6", help="IPv6 flows")]
ConfidenceOption = Annotated[float, typer.Option(help="of the intervals, inside 0 to 1")]


def _refuse(why: object) -> NoReturn:
    typer.echo(f"akocore: {why}", err=True)
    raise typer.Exit(2)


def _parse_hops(text: str) -> list[tuple[str, int]]:
    hops = []
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if not name or (weight and not weight.isdecimal()):
            _refuse(f"{part!r} isn't a hop: write a name, or name=weight.")
        hops.append((name, int(weight or 1)))
    return hops


def _maker(
    scheme: Scheme, buckets: int, seed: int, policy: int, fields: str, local: bool
) -> Callable[[Hops], HopGroup]:
    """Makes a group of any hops; refuses what no router has."""
    import akocore

    try:
        hashing: dict[str, Any] = {"policy": policy, "fields": int(fields, 0)}
    except ValueError:
        _refuse(f"--fields {fields} isn't a number.")
    hashing |= {"seed": seed, "forwarded": not local}
    kind: dict[Scheme, Callable[..., HopGroup]] = {
        Scheme.HASH_THRESHOLD: akocore.EcmpGroup,
        Scheme.RESILIENT: akocore.ResilientGroup,
        Scheme.MODULO: akocore.ModuloGroup,
        Scheme.RENDEZVOUS: akocore.RendezvousGroup,
        Scheme.MAGLEV: akocore.MaglevGroup,
    }
    if buckets:
        size = {Scheme.RESILIENT: "buckets", Scheme.MAGLEV: "size"}.get(scheme)
        if size is None:
            _refuse(f"--buckets is for resilient and maglev, not for {scheme}.")
        hashing[size] = buckets

    def make(hops: Hops) -> HopGroup:
        try:
            return kind[scheme](hops, **hashing)
        except ValueError as error:
            _refuse(error)

    return make


def _number(text: str, field: str, where: str) -> int:
    if field == "proto" and text.lower() in PROTOCOLS:
        return PROTOCOLS[text.lower()]
    if not text and field == "label":
        return 0
    try:
        return int(text, 0)
    except ValueError:
        _refuse(f"{where}: {field} must be a number, not {text!r}.")


def _columns(rows: Sequence[Sequence[str]], places: Sequence[str]) -> Flows:
    from akocore import Flows

    columns: dict[str, list[Any]] = {field: [] for field in FIELDS}
    for row, where in zip(rows, places, strict=True):
        if not 5 <= len(row) <= 6:
            _refuse(f"{where}: a flow is src, dst, proto, sport, dport[, label]: {', '.join(row)}")
        for field, text in zip(FIELDS, [*map(str.strip, row), ""], strict=False):
            columns[field].append(text if field in ("src", "dst") else _number(text, field, where))
    return Flows(**columns)


def _read(file: str) -> tuple[Flows, list[str]]:
    """The flows of a CSV file, and the place of each."""
    import csv
    import sys

    try:
        if file == "-":
            lines = sys.stdin.read().splitlines()
        else:
            lines = Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"{file} can't be read: {error}")
    reader = csv.reader(lines)
    rows, places = [], []
    for row in reader:
        header = reader.line_num == 1 and row[:1] == ["src"]
        if row and not header and not row[0].startswith("#"):
            rows.append(row)
            places.append(f"{'stdin' if file == '-' else file}:{reader.line_num}")
    if not rows:
        _refuse(f"{file} has no flows.")
    return _columns(rows, places), places


def _flows(
    file: str, count: int, traffic: str, traffic_seed: int, vips: int, ipv6: bool
) -> tuple[Flows, list[str]]:
    """Flows of a file, or made; and the place of each that has one."""
    from akocore.ecmp import Traffic, make_flows

    if file:
        return _read(file)
    return make_flows(count, Traffic(traffic), seed=traffic_seed, vips=vips, ipv6=ipv6), []


@contextmanager
def _naming(places: Sequence[str]) -> Iterator[None]:
    """Turns an error about a flow into a refusal that names its place in the file."""
    try:
        yield
    except ValueError as error:
        found = re.match(r"flow (\d+): (.*)", str(error), re.DOTALL)
        if found is None or int(found[1]) >= len(places):
            _refuse(error)
        _refuse(f"{places[int(found[1])]}: {found[2]}")


def _print_json(value: object) -> None:
    import msgspec
    import orjson

    typer.echo(orjson.dumps(msgspec.to_builtins(value), option=orjson.OPT_INDENT_2).decode())


def _table(*columns: str, title: str = "") -> Table:
    """A table whose first column is text, and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _print(*parts: object) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    for part in parts:
        console.print(part)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _range(interval: Interval, confidence: float) -> str:
    return f"{100 * confidence:g} %: {_percent(interval.low)} to {_percent(interval.high)}"


@ecmp.command()
def predict(
    hops: HopsArgument,
    flow: Annotated[
        list[str] | None,
        typer.Argument(metavar="SRC DST PROTO SPORT DPORT [LABEL]", help="one flow"),
    ] = None,
    *,
    seed: SeedOption,
    file: FileOption = "",
    policy: PolicyOption = 3,
    fields: FieldsOption = "0x37",
    local: LocalOption = False,
    scheme: SchemeOption = Scheme.HASH_THRESHOLD,
    buckets: BucketsOption = 0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the next hop of a flow, or of each flow of a file.

    The hash is the value that the router looks up. A resilient group is taken as newly made.
    """
    if bool(flow) == bool(file):
        _refuse("give one flow, or --file.")
    group = _maker(scheme, buckets, seed, policy, fields, local)(_parse_hops(hops))
    flows, places = _read(file) if file else (_columns([flow or []], ["flow"]), [""])
    with _naming(places):
        hashes = group.hashes(flows)
        chosen = group.select(flows)
    columns: tuple[Any, ...] = flows
    rows = [
        (*(str(part) for part in row), str(hash_), group.hops[hop][0])
        for *row, hash_, hop in zip(*columns, hashes, chosen, strict=True)
    ]
    if output is Output.JSON:
        names = (*FIELDS, "hash", "hop")
        numbers = set(names) - {"src", "dst", "hop"}
        _print_json(
            [
                {n: int(part) if n in numbers else part for n, part in zip(names, row, strict=True)}
                for row in rows
            ]
        )
        return
    table = _table("HOP", *(field.upper() for field in FIELDS), "HASH")
    for *row, hop in rows:
        table.add_row(hop, *row)
    _print(table)


@ecmp.command()
def distribution(
    hops: HopsArgument,
    seed: SeedOption = 1,
    count: FlowsOption = 100_000,
    traffic: TrafficOption = TrafficName.RANDOM,
    file: FileOption = "",
    behind: Annotated[
        str, typer.Option(metavar="HOPS", help="each hop is a router with these hops of its own")
    ] = "",
    behind_seed: Annotated[
        int, typer.Option(help="the seed of those routers, beside the same seed (0: another one)")
    ] = 0,
    traffic_seed: TrafficSeedOption = 0,
    vips: VipsOption = 1,
    ipv6: Ipv6Option = False,
    policy: PolicyOption = 3,
    fields: FieldsOption = "0x37",
    local: LocalOption = False,
    scheme: SchemeOption = Scheme.HASH_THRESHOLD,
    buckets: BucketsOption = 0,
    confidence: ConfidenceOption = 0.95,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print each hop's share of many flows, and the imbalance beside that of a fair hash."""
    from akocore.ecmp import distribution as spread
    from akocore.ecmp import two_tiers

    group = _maker(scheme, buckets, seed, policy, fields, local)(_parse_hops(hops))
    flows, places = _flows(file, count, traffic, traffic_seed, vips, ipv6)
    tiers: dict[str, Tiers] = {}
    with _naming(places):
        found = spread(group, flows, confidence)
        if behind:
            other = behind_seed or seed % 0xFFFFFFFF + 1
            for name, second_seed in (("same seed", seed), (f"seed {other}", other)):
                make = _maker(scheme, buckets, second_seed, policy, fields, local)
                tiers[name] = two_tiers(group, make(_parse_hops(behind)), flows)
    if output is Output.JSON:
        _print_json({"distribution": found, "tiers": tiers})
        return
    _print(*_distribution_text(found, confidence))
    if tiers:
        table = _table("SECOND TIER", "PATHS USED", "MAX/MEAN")
        for name, tier in tiers.items():
            table.add_row(name, f"{tier.used} of {tier.paths}", f"{tier.imbalance:.4f}")
        _print(table)


def _distribution_text(found: Distribution, confidence: float) -> list[object]:
    table = _table("HOP", "WEIGHT", "DUE", "OF ALL HASHES", "SHARE", "FLOWS")
    for hop in found.hops:
        table.add_row(
            hop.hop,
            str(hop.weight),
            _percent(hop.due),
            "" if hop.hashes is None else _percent(hop.hashes),
            _percent(hop.share),
            f"{hop.flows:,}",
        )
    fair = f"{found.fair.low:.4f} to {found.fair.high:.4f} ({100 * confidence:g} %)"
    said = f"Imbalance (max/mean) of {found.flows:,} flows {found.imbalance:.4f}"
    return [table, f"{said}; of a fair hash {fair}."]


@ecmp.command()
def whatif(
    hops: HopsArgument,
    after: AfterArgument,
    seed: SeedOption = 1,
    count: FlowsOption = 100_000,
    traffic: TrafficOption = TrafficName.RANDOM,
    file: FileOption = "",
    traffic_seed: TrafficSeedOption = 0,
    vips: VipsOption = 1,
    ipv6: Ipv6Option = False,
    policy: PolicyOption = 3,
    fields: FieldsOption = "0x37",
    local: LocalOption = False,
    scheme: SchemeOption = Scheme.HASH_THRESHOLD,
    buckets: BucketsOption = 0,
    confidence: ConfidenceOption = 0.95,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print how many flows move when the hops change, and where to put a new hop to move fewest.

    A resilient group is asked twice: with all of its buckets idle, and all in use by the flows.
    """
    make = _maker(scheme, buckets, seed, policy, fields, local)
    before, wanted = _parse_hops(hops), _parse_hops(after)
    flows, places = _flows(file, count, traffic, traffic_seed, vips, ipv6)
    with _naming(places):
        changes, best = _changes(make, before, wanted, flows, confidence)
    if output is Output.JSON:
        _print_json({"moves": changes, "insertions": best})
        return
    for name, found in changes.items():
        _print(*_moves_text(name, found, confidence))
    for name, ranked in best.items():
        if ranked[0].moved == ranked[-1].moved:
            _print(f"{name} moves {_percent(ranked[0].moved)} wherever it is put.")
            continue
        table = _table(f"{name} PUT", "MOVES", "ORDER")
        table.columns[2].justify = "left"
        for insertion in ranked:
            order = ",".join(_spell(hop) for hop in insertion.hops)
            table.add_row(f"at {insertion.place + 1}", _percent(insertion.moved), order)
        _print(table)


def _spell(hop: tuple[str, int]) -> str:
    name, weight = hop
    return name if weight == 1 else f"{name}={weight}"


def _changes(
    make: Callable[[Hops], HopGroup],
    before: Hops,
    wanted: Hops,
    flows: Flows,
    confidence: float,
) -> tuple[dict[str, Moves], dict[str, list[Insertion]]]:
    """The moves, by the state of the group; and for each new hop its places, best first."""
    from akocore import ResilientGroup
    from akocore.ecmp import insertions, moves, updated

    old = make(before)
    changes = {}
    if isinstance(old, ResilientGroup):
        for state, users in (("Buckets idle", []), ("Buckets in use", flows)):
            changes[state] = moves(old, updated(old, wanted, users), flows, confidence)
        resilient = old
        make = lambda hops: updated(resilient, hops)  # noqa: E731
    else:
        changes["At once"] = moves(old, make(wanted), flows, confidence)
    weights, names = dict(wanted), [name for name, _ in before]
    order = [(name, weights[name]) for name in names if name in weights]
    best = {}
    for name, weight in wanted:
        if name not in names:
            best[name] = insertions(old, make, (name, weight), flows, order)
            order = list(best[name][0].hops)
    return changes, best


def _moves_text(state: str, found: Moves, confidence: float) -> list[object]:
    table = _table("FROM / TO", *next(iter(found.pairs.values())), "FLOWS")
    for hop, row in found.pairs.items():
        cells = [f"{count:,}" if count else "" for count in row.values()]
        table.add_row(hop, *cells, f"{sum(row.values()):,}")
    exact = "" if found.hashes is None else f"; of all hash values {_percent(found.hashes)}"
    said = f"{state}: {_percent(found.fraction)} of {found.flows:,} flows move"
    return [f"{said} ({_range(found.interval, confidence)}){exact}.", table]


@ecmp.command()
def plot(
    hops: HopsArgument,
    after: Annotated[
        str, typer.Argument(metavar="[AFTER]", help="the hops after a change: draws the moves too")
    ] = "",
    *,
    to: Annotated[Path, typer.Option(help="the picture: a file ending in .png or .svg")],
    seed: SeedOption = 1,
    count: FlowsOption = 100_000,
    traffic: TrafficOption = TrafficName.RANDOM,
    file: FileOption = "",
    traffic_seed: TrafficSeedOption = 0,
    vips: VipsOption = 1,
    ipv6: Ipv6Option = False,
    policy: PolicyOption = 3,
    fields: FieldsOption = "0x37",
    local: LocalOption = False,
    scheme: SchemeOption = Scheme.HASH_THRESHOLD,
    buckets: BucketsOption = 0,
) -> None:
    """Draw the shares of the hops, and the moves of a change, into a PNG or SVG file.

    Of a resilient group the moves are those with all buckets idle.
    """
    if to.suffix not in (".png", ".svg"):
        _refuse(f"--to {to} must end in .png or .svg.")
    try:
        import matplotlib
    except ImportError:
        typer.echo("akocore: plots need matplotlib: pip install 'akocore[plot]'", err=True)
        raise typer.Exit(1) from None
    from akocore.ecmp import distribution as spread

    make = _maker(scheme, buckets, seed, policy, fields, local)
    flows, places = _flows(file, count, traffic, traffic_seed, vips, ipv6)
    before = _parse_hops(hops)
    with _naming(places):
        found = spread(make(before), flows)
        moved = None
        if after:
            changes, _ = _changes(make, before, _parse_hops(after), flows, 0.95)
            moved = next(iter(changes.values()))
    matplotlib.use("Agg")
    try:
        _draw(found, moved, f"{scheme}, policy {policy}, seed {seed}", to)
    except OSError as error:
        _refuse(f"{to} can't be written: {error}")
    typer.echo(str(to))


def _draw(found: Distribution, moved: Moves | None, title: str, to: Path) -> None:
    """Left the share of each hop beside what is its due; right, who gives flows to whom."""
    from matplotlib.figure import Figure

    from akocore.ecmp import proportion_interval

    wide = 6.4 if moved is None else 12
    figure = Figure(figsize=(wide, 4.4), layout="constrained")
    left = figure.add_subplot(1, 1 if moved is None else 2, 1)
    names = [hop.hop for hop in found.hops]
    shares = [100 * hop.share for hop in found.hops]
    places = range(len(names))
    left.bar(places, shares, color="#4c78a8", width=0.7, label="share of the flows")
    ranges = [proportion_interval(round(h.due * found.flows), found.flows) for h in found.hops]
    left.errorbar(
        places,
        [100 * hop.due for hop in found.hops],
        yerr=[
            [100 * (h.due - r.low) for h, r in zip(found.hops, ranges, strict=True)],
            [100 * (r.high - h.due) for h, r in zip(found.hops, ranges, strict=True)],
        ],
        fmt="_",
        color="#222222",
        markersize=22,
        capsize=4,
        label="due by weight, and 95 % range of a fair hash",
    )
    left.set_xticks(places, names, rotation=45 if len(names) > 6 else 0)
    left.set_ylabel("% of flows")
    left.set_ylim(0, 1.25 * max(*shares, *(100 * hop.due for hop in found.hops)))
    left.set_title(f"{found.flows:,} flows, max/mean {found.imbalance:.3f}")
    left.legend(loc="upper right", fontsize="small", frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    if moved is not None:
        _draw_moves(figure.add_subplot(1, 2, 2), moved)
    figure.suptitle(title, fontsize="medium", color="#555555")
    figure.savefig(to, dpi=120)


def _draw_moves(axes: Axes, moved: Moves) -> None:
    """Bars of the hops after the change, by the hop that had the flows before."""
    from matplotlib.patches import Patch

    after = list(next(iter(moved.pairs.values())))
    at = [0.0] * len(after)
    for i, (hop, row) in enumerate(moved.pairs.items()):
        parts = [100 * count / moved.flows for count in row.values()]
        bars = axes.bar(after, parts, bottom=at, color=f"C{i % 10}", width=0.7)
        for bar, other in zip(bars, after, strict=True):
            if other != hop:
                bar.set_hatch("///")
                bar.set_edgecolor("white")
        at = [below + part for below, part in zip(at, parts, strict=True)]
    axes.set_ylabel("% of flows")
    axes.set_ylim(0, 1.25 * max(at))
    axes.set_title(f"after the change: {_percent(moved.fraction)} of the flows move (hatched)")
    axes.tick_params(axis="x", rotation=45 if len(after) > 6 else 0)
    axes.legend(
        handles=[
            Patch(color=f"C{i % 10}", label=f"from {hop}") for i, hop in enumerate(moved.pairs)
        ],
        loc="upper right",
        fontsize="small",
        frameon=False,
        ncols=min(4, len(moved.pairs)),
    )
    axes.spines[["top", "right"]].set_visible(False)
