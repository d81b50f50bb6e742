"""What a running akocore shows of itself: metrics, health, logs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from akocore.config import load_config
from akocore.engines.envoy.process import find_envoy
from akocore.kube.api import ApiServer
from akocore.kube.cluster import WATCHED, Cluster
from akocore.kube.credentials import Credentials
from akocore.observe.observation import Observation, unready
from akocore.serve import Serve, of_directory
from e2e.running import OFFSET, Backend, Running
from e2e.scraping import ANYWHERE, endpoints, get, scrape, until
from e2e.test_tls import House as TlsHouse
from e2e.test_tls import pair

GROUP = 'group="Default-Group"'


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Not started; with endpoints where there is room."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    made = Running(tmp_path, server.sockets[0].getsockname()[1])
    made.options = ANYWHERE
    yield made
    await made.stop()
    server.close()


async def served(running: Running, hosts: int) -> str:
    """Start it; where the endpoints are, once that many hosts are served."""
    await running.start()
    await running.until_up_to_date(hosts)
    return await endpoints(running.log)


async def test_edits_move_the_metrics_and_ingresses_add_no_series(running: Running) -> None:
    for i in range(20):
        running.dummy("app", i)
    at = await served(running, 20)
    first = await scrape(at)
    assert first["akocore_hosts"] == 20
    assert first['akocore_events_received_total{kind="Ingress"}'] == 20
    assert first[f'akocore_engines{{{GROUP},state="ready"}}'] == 2
    assert first["akocore_leader"] == first["akocore_ready"] == 1
    assert first["akocore_batch_objects_count"] == 1
    assert first["akocore_batch_objects_sum"] == 60
    assert first[f"akocore_event_ack_seconds_count{{{GROUP}}}"] == 1
    # Nobody was there to be pushed to: that was no push.
    assert f"akocore_push_ack_seconds_count{{{GROUP}}}" not in first

    running.dummy("app", 20)
    push, event = (f"akocore_{which}_ack_seconds_count{{{GROUP}}}" for which in ("push", "event"))
    one_more = await until(at, lambda found: push in found)
    assert one_more[push] == 1
    assert one_more[event] == 2
    assert one_more["akocore_batch_objects_count"] == 2
    assert one_more["akocore_batch_objects_sum"] == 63
    assert one_more["akocore_hosts"] == one_more["akocore_hosts_realised_total"] == 21
    for phase in ("translate", "encode", "publish"):
        name = f'akocore_batch_seconds_sum{{phase="{phase}"}}'
        assert one_more[name] > first[name] > 0
    assert one_more[f"akocore_push_ack_seconds_sum{{{GROUP}}}"] > 0
    assert one_more[f"akocore_publications_unacknowledged{{{GROUP}}}"] == 0

    for i in range(21, 200):
        running.dummy("app", i)
    await running.until_up_to_date(200)
    many = await until(at, lambda found: found["akocore_hosts"] == 200)
    assert many.keys() == one_more.keys()
    shards = [n for name, n in many.items() if name.startswith("akocore_virtual_service_hosts{")]
    assert len(shards) == 8
    assert sum(shards) == 200
    free = many['akocore_network_addresses_free{network="default"}']
    assert many['akocore_network_addresses{network="default"}'] - free == 8


async def test_dedicated_virtual_services_are_one_number(running: Running) -> None:
    running.config = "defaults: {shardSize: DEDICATED}\n"
    for i in range(3):
        running.dummy("app", i)
    at = await served(running, 3)
    first = await scrape(at)
    assert first["akocore_dedicated_virtual_services"] == 3
    assert first["akocore_dedicated_virtual_service_hosts"] == 3
    for i in range(3, 9):
        running.dummy("app", i)
    more = await until(at, lambda found: found["akocore_dedicated_virtual_services"] == 9)
    assert not any("akocore_virtual_service_hosts{" in name for name in more)


async def test_what_is_refused_is_counted_by_kind_and_reason_until_it_is_not(
    running: Running,
) -> None:
    running.dummy("good", 1)
    at = await served(running, 1)
    running.dummy("bad", 1, "nowhere")
    running.dummy("bad", 2, "nowhere")
    running.write("broken.yaml", "kind: [")
    no_class = 'akocore_refused_objects{kind="Ingress",reason="IngressClassNotFound"}'
    no_yaml = 'akocore_refused_objects{kind="File",reason="InvalidYAML"}'
    await until(at, lambda found: (found.get(no_class), found.get(no_yaml)) == (2, 1))
    running.dummy("bad", 1)
    (running.directory / "bad2.json").unlink()
    running.write("broken.yaml", "")
    await until(at, lambda found: (found[no_class], found[no_yaml]) == (0, 0))


async def test_engines_that_end_refuse_and_hang_are_seen(running: Running) -> None:
    running.config = "defaults: {shardSize: SMALL}\n"
    running.dummy("app", 1)
    # The holder of the VIP has no SO_REUSEPORT, so the engines are refused it.
    with socket.create_server(("127.10.15.161", 80 + OFFSET)):
        await running.start()
        at = await endpoints(running.log)
        found = await until(
            at, lambda found: found.get(f"akocore_rejected_resources{{{GROUP}}}") == 2
        )
        assert found["akocore_nacks_total"] >= 2
    found = await until(at, lambda found: not found[f"akocore_rejected_resources{{{GROUP}}}"])

    pids = [engine["pid"] for engine in (await running.engines()).values()]
    os.kill(pids[0], signal.SIGKILL)
    restarts = f'akocore_engine_restarts_total{{engine="Default-Group-se-1",{GROUP}}}'
    found = await until(
        at,
        lambda found: bool(
            found[restarts] and found[f'akocore_engines{{{GROUP},state="ready"}}'] == 2
        ),
    )
    assert found[restarts] == 1
    assert found[f'akocore_engine_restarts_total{{engine="Default-Group-se-2",{GROUP}}}'] == 0

    os.kill(pids[1], signal.SIGSTOP)
    push = f"akocore_push_ack_seconds_count{{{GROUP}}}"
    before = found.get(push, 0)
    running.dummy("app", 2)
    waits = f"akocore_publications_unacknowledged{{{GROUP}}}"
    oldest = f"akocore_publication_oldest_seconds{{{GROUP}}}"
    found = await until(at, lambda found: found[waits] == 1 and found[oldest] > 0.2)
    assert found.get(push, 0) == before
    os.kill(pids[1], signal.SIGCONT)
    found = await until(at, lambda found: found[waits] == 0)
    assert found[push] == before + 1
    assert found[f"akocore_push_ack_seconds_sum{{{GROUP}}}"] > 0.2


async def test_both_formats_of_prometheus_are_spoken(running: Running) -> None:
    running.dummy("app", 1)
    at = await served(running, 1)
    status, text = await get(at, "/metrics", "application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert families["akocore_event_ack_seconds"].type == "histogram"
    assert families["akocore_nacks"].type == "counter"
    plain = {name.partition("{")[0] for name in await scrape(at)}
    assert {s.name for family in families.values() for s in family.samples} == plain


async def test_readyz_says_why_until_all_is_applied_and_from_the_end_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "d").mkdir()
    with caplog.at_level(logging.INFO, "akocore"):
        async with Observation("127.0.0.1:0", {}) as observation:
            at = re.findall(r"event=metrics_served at=(\S+)", caplog.text)[-1]
            assert await get(at, "/healthz") == (200, "ok\n")
            assert await get(at, "/readyz") == (
                503,
                "starting: what is remembered has not been read yet\n",
            )
            serve = Serve(
                of_directory(tmp_path / "d"),
                tmp_path / "s",
                load_config(None),
                find_envoy(),
                9000,
                watch=observation.watch,
            )
            observation.of(serve)
            status, text = await get(at, "/readyz")
            assert status == 503
            assert text.splitlines() == [
                "the first batch is not applied",
                "xDS is not open: Service Engines are not answered",
            ]
            assert (await scrape(at))["akocore_ready"] == 0
            task = asyncio.create_task(serve.run())
            await serve.ready.wait()
            assert await get(at, "/readyz") == (200, "ok\n")
            assert (await scrape(at))["akocore_ready"] == 1
            serve.stop()
            assert await get(at, "/readyz") == (503, "stopping\n")
            await task
            assert await get(at, "/healthz") == (200, "ok\n")
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(at, "/healthz")


async def test_readyz_names_the_kinds_that_are_not_listed_yet(tmp_path: Path) -> None:
    async def credentials() -> Credentials:
        return Credentials(server="http://127.0.0.1:1")  # nobody listens there

    async with ApiServer(credentials) as api:
        serve = Serve(lambda _facts: Cluster(api), tmp_path, load_config(None), find_envoy())
        task = asyncio.create_task(serve.source.first())
        await asyncio.sleep(0)
        assert unready(serve)[0] == (
            "the first batch is not applied: waiting for the first list of"
            f" {', '.join(sorted(WATCHED))}"
        )
        task.cancel()
        stop = asyncio.Event()
        stop.set()
        assert [batch async for batch in serve.source.watch(stop)] == []  # its informers end
    serve.facts.close()


async def failing(*arguments: str) -> str:
    """What a command says that must fail."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "akocore", *arguments), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    return said.decode()


@pytest.mark.parametrize("command", ["serve", "controller"])
async def test_a_port_that_is_taken_ends_the_command_and_the_error_names_the_flag(
    tmp_path: Path, command: str
) -> None:
    what = ["serve", str(tmp_path)] if command == "serve" else ["controller"]
    with socket.create_server(("127.0.0.1", 0)) as holder:
        place = f"127.0.0.1:{holder.getsockname()[1]}"
        said = await failing(
            *(*what, "--state", str(tmp_path / "s"), "--port-offset", str(OFFSET)),
            *("--metrics-listen", place),
        )
    assert said == (
        f"akocore: --metrics-listen {place}: Address already in use."
        ' Choose another HOST:PORT, or switch it off with --metrics-listen "".\n'
    )


@pytest.mark.parametrize("place", ["9810", "127.0.0.1:", "127.0.0.1:99999", "::1:80"])
async def test_a_place_that_is_none_is_refused(tmp_path: Path, place: str) -> None:
    said = await failing(
        *("serve", str(tmp_path), "--state", str(tmp_path / "s"), "--port-offset", str(OFFSET)),
        *("--metrics-listen", place, "--log-format", "json"),
    )
    assert json.loads(said)["event"] == "failed"
    assert f"--metrics-listen {place}: it is not HOST:PORT" in json.loads(said)["why"]


# ── logs ────────────────────────────────────────────────────────────────────────────────────


async def test_every_line_of_a_json_log_is_an_object_with_the_fields_of_its_event(
    running: Running,
) -> None:
    running.options = [*ANYWHERE, "--log-format", "json", "--log-level", "debug"]
    running.dummy("good", 1)
    running.dummy("bad", 1, "nowhere")
    await served(running, 1)
    pid = (await running.engines())["Default-Group-se-1"]["pid"]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while running.log.read_text().count('"se_ready"') < 3:
            await asyncio.sleep(0.05)
    await running.stop()
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert all(line.keys() >= {"time", "level", "logger"} for line in lines)
    assert [line for line in lines if "message" in line and "event" not in line] == []
    by_event = {line["event"]: line for line in lines}
    loaded = by_event["loaded"]
    assert (loaded["level"], loaded["logger"]) == ("info", "akocore.serve")
    assert loaded["objects"] == 6
    assert isinstance(loaded["read_ms"], float)
    refused = by_event["IngressClassNotFound"]
    assert (refused["level"], refused["object"]) == ("warning", "Ingress/default/bad1")
    assert refused["note"].startswith("spec.ingressClassName: ")
    ready = by_event["se_ready"]
    assert (ready["se"], ready["group"]) == ("Default-Group-se-1", "Default-Group")
    assert by_event["se_down"]["why"].startswith("SIGKILL")
    assert by_event["batch"]["level"] == by_event["acknowledged"]["level"] == "debug"


async def test_the_level_is_the_least_that_is_told(running: Running) -> None:
    running.options = ["--metrics-listen", "", "--log-level", "warning"]
    running.dummy("good", 1)
    running.dummy("bad", 1, "nowhere")
    await running.start()
    await running.until_up_to_date(1)
    await running.stop()
    lines = running.log.read_text().splitlines()
    assert any("event=IngressClassNotFound object=Ingress/default/bad1" in one for one in lines)
    assert {line.split()[2] for line in lines} == {"WARNING"}


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_is_in_the_log_or_the_metrics(running: Running, form: str) -> None:
    running.options = [*ANYWHERE, "--log-format", form, "--log-level", "debug"]
    house = TlsHouse(running)
    good, other = pair("good.avi.iberia.local"), pair("other.avi.iberia.local")
    house.secret("good", good[0], good[1])
    house.secret("mixed", good[0], other[1])
    house.secret("cut", good[0], good[1][:100])
    house.app("good", "good")
    house.app("mixed", "mixed")
    house.app("cut", "cut")
    head = "apiVersion: v1\nkind: Secret\nmetadata: {name: NAME}\nstringData:\n  password: "
    for name, value in {
        "tagged": "!hunter2-tagged",
        "twice": "!!hunter2-twice",
        "open": '"hunter2-open',
        "colon": "hunter2-colon: x",
        "star": "*hunter2-star",
    }.items():
        running.write(f"{name}.yaml", head.replace("NAME", name) + value + "\n")
    running.write(
        "typed.yaml",
        head.replace("stringData", "data").replace("NAME", "typed") + "[hunter2-typed]",
    )
    await running.start()
    await house.refused("mixed", "CertificateMismatch")
    await house.refused("cut", "InvalidCertificate")
    vip = await house.vip("good.avi.iberia.local")
    await house.until_serial(vip, "good.avi.iberia.local", good[2])
    said = running.log.read_text() + (await get(await endpoints(running.log), "/metrics"))[1]
    for name in ("tagged", "twice", "open", "colon", "star", "typed"):
        assert f"File/{name}.yaml" in said  # it was complained of, without its words
    assert "hunter2" not in said
    for key in (good[1], other[1]):
        body = key.decode().splitlines()[1:-1]
        assert not [line for line in body if line in said]
    assert "PRIVATE KEY" not in said
    assert "LS0tLS1" not in said
