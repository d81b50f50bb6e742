"""`akocore ecmp` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from akocore import EcmpGroup, MaglevGroup, RendezvousGroup, ResilientGroup
from akocore.cli import app
from akocore.cli.ecmp import TrafficName
from akocore.ecmp import Traffic, make_flows, moves

ROWS: list[tuple[str, str, int, int, int]] = [
    (f"10.0.0.{i}", "192.0.2.1", 6, 40_000 + i, 443) for i in range(20)
]
HOPS = [("se-1", 1), ("se-2", 3)]


def run(*arguments: str, stdin: str | None = None) -> str:
    result = CliRunner().invoke(app(), ["ecmp", *arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str, stdin: str | None = None) -> Any:
    return json.loads(run(*arguments, "-o", "json", stdin=stdin))


def refusal(*arguments: str, code: int = 2) -> str:
    result = CliRunner().invoke(app(), ["ecmp", *arguments])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


def test_predict_prints_the_hop_of_a_flow() -> None:
    group = EcmpGroup(HOPS, seed=7)
    flow = [str(part) for part in ROWS[3]]
    found = run_json("predict", "se-1,se-2=3", *flow, "--seed", "7")
    assert found == [
        {
            "src": "10.0.0.3",
            "dst": "192.0.2.1",
            "proto": 6,
            "sport": 40_003,
            "dport": 443,
            "label": 0,
            "hash": group.hashes([ROWS[3]])[0],
            "hop": HOPS[group.select([ROWS[3]])[0]][0],
        }
    ]
    line = run("predict", "se-1,se-2=3", *flow, "--seed", "7").splitlines()[-2].split()
    assert line == [found[0]["hop"], *flow, "0", str(found[0]["hash"])]


@pytest.mark.parametrize("header", ["", "src,dst,proto,sport,dport\n"], ids=["bare", "header"])
def test_predict_reads_a_file_of_flows_or_stdin(tmp_path: Path, header: str) -> None:
    group = EcmpGroup(HOPS, seed=7, policy=1)
    text = header + "# a remark\n\n"
    text += "".join(f"{s}, {d},TCP,{sport},{dport}\n" for s, d, _, sport, dport in ROWS)
    (tmp_path / "flows.csv").write_text(text)
    command = ["predict", "se-1,se-2=3", "--seed", "7", "--policy", "1", "--file"]
    expected = [HOPS[hop][0] for hop in group.select(ROWS)]
    assert set(expected) == {"se-1", "se-2"}
    for file, stdin in ((str(tmp_path / "flows.csv"), None), ("-", text)):
        assert [row["hop"] for row in run_json(*command, file, stdin=stdin)] == expected


def test_predict_knows_every_scheme_and_how_the_router_hashes() -> None:
    flow = ["2001:db8::1", "2001:db8::2", "udp", "0x35", "53", "77"]
    common = ["predict", "a,b,c,d,e,f,g", *flow, "--seed", "9"]
    row: Any = tuple([x] for x in ("2001:db8::1", "2001:db8::2", 17, 53, 53, 77))
    from akocore import Flows

    names = "abcdefg"
    for group, options in (
        (EcmpGroup([*names], seed=9, fields=0x3F), ["--fields", "0x3f"]),
        (EcmpGroup([*names], seed=9, policy=0, forwarded=False), ["--policy", "0", "--local"]),
        (EcmpGroup([*names], seed=9, forwarded=False), ["--local"]),
        (RendezvousGroup([*names], seed=9), ["--scheme", "rendezvous"]),
        (MaglevGroup([*names], seed=9, size=31), ["--scheme", "maglev", "--buckets", "31"]),
        (ResilientGroup([*names], seed=9), ["--scheme", "resilient"]),
    ):
        found = run_json(*common, *options)[0]
        assert found["hash"] == group.hashes(Flows(*row))[0]
        assert found["hop"] == names[group.select(Flows(*row))[0]]


def test_distribution_prints_shares_imbalance_and_the_second_tier() -> None:
    command = ["distribution", "a,b=2", "--flows", "5000", "--seed", "3", "--behind", "x,y"]
    found = run_json(*command)
    shares = EcmpGroup([("a", 1), ("b", 2)], seed=3).shares(make_flows(5000))
    assert {hop["hop"]: hop["flows"] for hop in found["distribution"]["hops"]} == shares
    fair = found["distribution"]["fair"]
    assert fair["low"] <= found["distribution"]["imbalance"] <= fair["high"]
    assert {name: tier["used"] for name, tier in found["tiers"].items()} == {
        "same seed": 3,
        "seed 4": 4,
    }
    text = run(*command)
    assert f"{shares['b']:,}" in text
    assert "Imbalance (max/mean) of 5,000 flows" in text
    assert "3 of 4" in text


def test_structured_flows_show_what_a_policy_cannot_tell_apart() -> None:
    command = ["distribution", "a,b,c", "--traffic", "nat", "--flows", "1000"]
    found = run_json(*command, "--policy", "0")["distribution"]
    assert sorted(hop["flows"] for hop in found["hops"]) == [0, 0, 1000]
    assert found["imbalance"] == 3 > found["fair"]["high"]
    found = run_json(*command, "--policy", "1")["distribution"]
    assert found["imbalance"] < 1.2


def test_whatif_counts_moves_and_ranks_the_places_of_a_new_hop() -> None:
    command = ["whatif", "a,b", "a,b,c", "--flows", "4000", "--seed", "5"]
    found = run_json(*command)
    before, after = (EcmpGroup([*names], seed=5) for names in ("ab", "abc"))
    expected = moves(before, after, make_flows(4000))
    assert found["moves"]["At once"]["moved"] == expected.moved
    assert found["moves"]["At once"]["pairs"] == expected.pairs
    assert found["moves"]["At once"]["hashes"] == pytest.approx(0.5)
    assert [place["place"] for place in found["insertions"]["c"]] == [1, 0, 2]
    assert found["insertions"]["c"][0]["moved"] == pytest.approx(1 / 3)
    text = run(*command)
    assert f"{100 * expected.fraction:.2f} % of 4,000 flows move" in text
    assert "of all hash values 50.00 %" in text
    assert "a,c,b" in text


def test_whatif_of_a_resilient_group_tells_idle_from_busy() -> None:
    command = ["whatif", "a,b,c", "a,b,c,d", "--scheme", "resilient", "--flows", "5000"]
    found = run_json(*command)["moves"]
    assert found["Buckets idle"]["hashes"] == pytest.approx(0.25)
    assert found["Buckets in use"]["moved"] == 0
    assert "d moves 25.00 % wherever it is put." in run(*command)


def test_whatif_of_a_hop_that_goes_has_no_place_to_tell(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in ROWS))
    found = run_json("whatif", "a,b,c", "a,c", "--file", str(tmp_path / "f.csv"))
    assert found["insertions"] == {}
    assert found["moves"]["At once"]["flows"] == 20


@pytest.mark.parametrize("after", [[], ["se-1,se-3,se-2"]], ids=["shares", "moves"])
def test_plot_draws_png_and_svg(tmp_path: Path, after: list[str]) -> None:
    for name, magic in (("p.png", b"\x89PNG\r\n"), ("p.svg", b"<?xml")):
        to = tmp_path / name
        run("plot", "se-1,se-2=2", *after, "--to", str(to), "--flows", "2000")
        assert to.read_bytes().startswith(magic)
    drawn = (tmp_path / "p.svg").read_text()
    assert "2,000 flows, max/mean" in drawn
    assert ("of the flows move" in drawn) == bool(after)


def test_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refusal("plot", "a,b", "--to", str(tmp_path / "p.png"), code=1)
    assert said == "akocore: plots need matplotlib: pip install 'akocore[plot]'\n"


FLOW = ("10.0.0.1", "192.0.2.1", "tcp", "1", "2")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["predict", "a,b", "--seed", "1"], "give one flow, or --file."),
        (["predict", "a,,b", *FLOW, "--seed", "1"], "'' isn't a hop: write a name, or name=weight"),
        (["predict", "a=x", *FLOW, "--seed", "1"], "'a=x' isn't a hop"),
        (["predict", "a,a", *FLOW, "--seed", "1"], "hops must have different names"),
        (["predict", "a=0", *FLOW, "--seed", "1"], "the weight must be from 1 to 65535, not 0"),
        (["predict", "a", *FLOW, "--seed", "0"], "the seed must be from 1 to 2^32-1, not 0"),
        (["predict", "a", *FLOW, "--seed", "1", "--policy", "2"], "must be 0, 1 or 3, not 2"),
        (["predict", "a", *FLOW, "--seed", "1", "--fields", "src"], "--fields src isn't a number"),
        (["predict", "a", *FLOW, "--seed", "1", "--buckets", "5"], "is for resilient and maglev"),
        (["predict", "a", *FLOW[:4], "--seed", "1"], "flow: a flow is src, dst, proto, sport"),
        (["predict", "a", *FLOW[:4], "x", "--seed", "1"], "flow: dport must be a number, not 'x'"),
        (["predict", "a", *FLOW[:4], "65536", "--seed", "1"], "dport must be from 0 to 65535"),
        (["predict", "a", "--file", "none.csv", "--seed", "1"], "none.csv can't be read"),
        (["distribution", "a,b", "--confidence", "1.5"], "confidence must lie inside 0 to 1"),
        (["whatif", "a", "b", "--scheme", "maglev", "--buckets", "9"], "must be a prime"),
        (["whatif", "a", "b", "--scheme", "resilient", "--buckets", "70000"], "to 65535 buckets"),
        (["plot", "a,b", "--to", "p.pdf"], "--to p.pdf must end in .png or .svg"),
        (["plot", "a,b", "--to", "/nowhere/p.png"], "/nowhere/p.png can't be written"),
    ],
)
def test_what_a_user_gets_wrong_is_told(arguments: list[str], text: str) -> None:
    assert text in refusal(*arguments)


@pytest.mark.parametrize(
    "line, text",
    [
        ("10.0.0,192.0.2.1,6,1,2", "f.csv:3: src isn't an IPv4 or IPv6 address: '10.0.0'"),
        ("10.0.0.1,::1,6,1,2", "f.csv:3: src and dst are of different families"),
        ("10.0.0.1,192.0.2.1,6,1", "f.csv:3: a flow is src, dst"),
        ("10.0.0.1,192.0.2.1,6,1,2,3,4", "f.csv:3: a flow is src, dst"),
        ("10.0.0.1,192.0.2.1,tpc,1,2", "f.csv:3: proto must be a number, not 'tpc'"),
        ("10.0.0.1,192.0.2.1,256,1,2", "f.csv:3: proto must be from 0 to 255, not 256"),
        ("10.0.0.1,192.0.2.1,6,1,2,7", "f.csv:3: label must be 0 for IPv4, not 7"),
    ],
)
def test_a_bad_line_of_a_file_is_named(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "f.csv").write_text(
        f"src,dst,proto,sport,dport\n10.0.0.1,192.0.2.1,6,1,2\n{line}\n"
    )
    assert text in refusal("predict", "a", "--seed", "1", "--file", str(tmp_path / "f.csv"))


def test_a_file_of_no_flows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("src,dst,proto,sport,dport\n")
    assert "has no flows" in refusal("distribution", "a", "--file", str(tmp_path / "f.csv"))


def test_the_traffic_of_the_command_line_is_that_of_the_room() -> None:
    assert [name.value for name in TrafficName] == [name.value for name in Traffic]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = {"matplotlib", "numpy", "akocore.ecmp", "statistics"}
    script = f"import sys, akocore.cli; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
