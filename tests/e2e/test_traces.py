"""Traces as a receiver of OTLP over gRPC gets them, and what is loaded without it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import site
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import akocore
from e2e.running import Backend, Running


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver on ``port``."""

    def __init__(self) -> None:
        self.port = 0
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []

    async def Export(self, request: Any, _context: object) -> Any:  # noqa: N802
        for of_resource in request.resource_spans:
            about = {a.key: a.value.string_value for a in of_resource.resource.attributes}
            self.resources.append(about)
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def traces(self) -> list[dict[str, list[Span]]]:
        """Each trace's spans by name."""
        out: dict[bytes, dict[str, list[Span]]] = {}
        for span in self.spans:
            out.setdefault(span.trace_id, {}).setdefault(span.name, []).append(span)
        return list(out.values())

    async def until(self, count: int) -> list[dict[str, list[Span]]]:
        """Wait for that many whole traces; by their time."""
        async with asyncio.timeout(20):
            while sum("batch" in trace for trace in self.traces()) < count:
                await asyncio.sleep(0.05)
        return sorted(self.traces(), key=lambda trace: trace["batch"][0].start_time_unix_nano)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made, server = Receiver(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)
    made.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield made
    await server.stop(None)


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """Not started."""
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    made = Running(tmp_path, server.sockets[0].getsockname()[1])
    yield made
    await made.stop()
    server.close()


def attributes(span: Span) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        which = value.WhichOneof("value")
        found = getattr(value, which)
        return [plain(one) for one in found.values] if which == "array_value" else found

    return {a.key.removeprefix("akocore."): plain(a.value) for a in span.attributes}


async def test_a_batch_is_one_trace_from_its_event_to_its_acknowledgement(
    receiver: Receiver, running: Running
) -> None:
    running.environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    await receiver.until(1)
    running.dummy("app", 2)
    await running.until_up_to_date(2)
    first, edit = await receiver.until(2)
    for trace in (first, edit):
        (batch,) = trace["batch"]
        assert trace.keys() == {"batch", "gather", "apply", "publish", "ack"}
        children = [spans[0] for name, spans in trace.items() if name != "batch"]
        assert {child.parent_span_id for child in children} == {batch.span_id}
        gather, apply, publish, ack = (trace[n][0] for n in ("gather", "apply", "publish", "ack"))
        assert batch.start_time_unix_nano == gather.start_time_unix_nano
        assert gather.end_time_unix_nano == apply.start_time_unix_nano
        assert (
            apply.start_time_unix_nano
            < publish.start_time_unix_nano
            < publish.end_time_unix_nano
            <= apply.end_time_unix_nano
        )
        assert ack.start_time_unix_nano == publish.end_time_unix_nano
        assert apply.end_time_unix_nano < ack.end_time_unix_nano == batch.end_time_unix_nano
    said = attributes(edit["batch"][0])
    assert said == {"objects": 3, "hosts": 1, "groups": ["Default-Group"], "sequence": [2]}
    assert attributes(edit["ack"][0]) == {"group": "Default-Group", "sequence": 2}
    about = receiver.resources[0]
    assert about["service.name"] == "akocore"
    assert about["service.version"] == akocore.__version__
    assert about["deployment.environment.name"] == "test"


async def test_what_is_not_acknowledged_at_the_end_is_told_without_an_ack(
    receiver: Receiver, running: Running
) -> None:
    running.environment = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
        "OTEL_SERVICE_NAME": "mine",
    }
    running.options = ["--metrics-listen", "", "--log-level", "debug"]
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    for engine in (await running.engines()).values():
        os.kill(engine["pid"], signal.SIGSTOP)
    running.dummy("app", 2)
    async with asyncio.timeout(10):
        while running.log.read_text().count("event=batch") < 2:
            await asyncio.sleep(0.02)
    await running.stop()
    _, edit = await receiver.until(2)
    assert edit.keys() == {"batch", "gather", "apply", "publish"}
    assert edit["batch"][0].end_time_unix_nano == edit["apply"][0].end_time_unix_nano
    assert receiver.resources[0]["service.name"] == "mine"


async def test_a_receiver_that_is_away_holds_up_nobody(running: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    running.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    running.dummy("app", 2)
    await running.until_up_to_date(2)
    await running.stop()
    assert "event=tracing_on" in running.log.read_text()


async def test_another_protocol_is_refused_in_words(running: Running) -> None:
    running.environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    (line,) = [one for one in running.log.read_text().splitlines() if "tracing" in one]
    assert "event=tracing_off why='OTLP over http/protobuf is not spoken here'" in line


# ── what is not asked for costs nothing ─────────────────────────────────────────────────────

_IMPORTED = re.compile(r"^import time:.*\| +(\S+)$", re.MULTILINE)


def imported(log: str) -> set[str]:
    """Packages, as Python itself tells them."""
    return {name.partition(".")[0] for name in _IMPORTED.findall(log)} | {
        name for name in _IMPORTED.findall(log) if name.startswith("opentelemetry.")
    }


def without_opentelemetry(scratch: Path) -> Path:
    """A directory with all packages that are installed without the extra.

    Of OpenTelemetry that is what xds-protos brings: its messages.
    """
    packages = scratch / "packages"
    (packages / "opentelemetry").mkdir(parents=True)
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if entry.name != "opentelemetry":
            (packages / entry.name).symlink_to(entry)
        else:
            for name in ("__init__.py", "proto"):
                (packages / "opentelemetry" / name).symlink_to(entry / name)
    return packages


async def test_without_the_variable_nothing_of_opentelemetry_is_loaded(running: Running) -> None:
    running.environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    running.options = ["--metrics-listen", "127.0.0.1:0"]
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    found = imported(running.log.read_text())
    assert {"akocore", "prometheus_client", "aiohttp"} <= found
    assert "opentelemetry" not in found


async def test_without_endpoints_nothing_of_prometheus_is_loaded(
    receiver: Receiver, running: Running
) -> None:
    running.environment = {
        "PYTHONPROFILEIMPORTTIME": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
    }
    running.options = ["--metrics-listen", ""]
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    found = imported(running.log.read_text())
    assert "opentelemetry.sdk.trace" in found
    assert "prometheus_client" not in found


async def test_without_the_extra_the_log_says_what_to_install_and_all_is_served(
    receiver: Receiver, running: Running, tmp_path: Path
) -> None:
    packages = without_opentelemetry(tmp_path)
    running.python = [sys.executable, "-S"]
    running.environment = {
        "PYTHONPATH": f"{packages}:{Path(akocore.__file__).parents[1]}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
    }
    running.dummy("app", 1)
    await running.start()
    await running.until_up_to_date(1)
    await running.stop()
    (line,) = [one for one in running.log.read_text().splitlines() if "tracing" in one]
    assert "WARNING event=tracing_off" in line
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed" in line
    assert "pip install 'akocore[otel]'" in line
    assert receiver.spans == []
