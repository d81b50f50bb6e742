"""Service Engines as local processes, with the real Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

# The messages inside the listener's Anys must be known to protobuf.
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401  # isort: skip
from envoy.extensions.filters.network.http_connection_manager.v3 import (  # noqa: F401  # isort: skip
    http_connection_manager_pb2,
)

from akocore.engines.envoy.bootstrap import bootstrap
from akocore.engines.envoy.ports import preflight
from akocore.engines.envoy.process import (
    EngineError,
    Engines,
    Envoy,
    find_envoy,
)

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def envoy() -> Envoy:
    try:
        return find_envoy()
    except EngineError as err:
        if os.environ.get("AKOCORE_REQUIRE_REAL") == "1":
            raise
        pytest.skip(str(err))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, for the sockets in it.  Whatever a failed test left running there is ended."""
    with tempfile.TemporaryDirectory(prefix="se-") as name:
        yield Path(name)
        for pid in envoys_of(Path(name)):
            os.kill(pid, signal.SIGKILL)


def envoys_of(run_dir: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            argv = (entry / "cmdline").read_text().split("\0")
            at = f"{(entry / 'cwd').readlink()} {' '.join(argv)}"
        except OSError:
            continue
        if entry.name.isdigit() and "--disable-hot-restart" in argv and str(run_dir) in at:
            found.append(int(entry.name))
    return found


def engines(run_dir: Path, envoy: Envoy, **more: Any) -> Engines:
    return Engines(run_dir, envoy, run_dir / "xds.sock", **more)


def pid_of(some: Engines, name: str) -> int:
    pid = some.running[name].pid
    assert pid is not None
    return pid


async def until(true: Callable[[], bool | Awaitable[bool]], within_s: float = 8) -> None:
    deadline = time.monotonic() + within_s
    while True:
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


async def answers(some: Engines, name: str) -> bool:
    try:
        return bool(await some.admin(name).stats(r"^server\.uptime$"))
    except EngineError:
        return False


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def left_behind(run_dir: Path) -> set[str]:
    return {path.name for path in run_dir.iterdir()} - {"lock", "xds.sock"}


# ─── the binary and the bootstrap


def test_the_bootstrap_is_valid_to_the_real_envoy(envoy: Envoy, run_dir: Path) -> None:
    file = run_dir / "b.json"
    file.write_bytes(bootstrap("se-1", "Default-Group", run_dir / "x", run_dir / "a"))
    done = subprocess.run(
        [envoy.path, "--mode", "validate", "-c", file, "--disable-hot-restart"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_equal_arguments_give_an_equal_bootstrap(tmp_path: Path) -> None:
    assert bootstrap("a", "g", tmp_path, tmp_path) == bootstrap("a", "g", tmp_path, tmp_path)
    assert bootstrap("a", "g", tmp_path, tmp_path) != bootstrap("b", "g", tmp_path, tmp_path)


def fake_envoy(directory: Path, script: str) -> Path:
    path = directory / "fake-envoy"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_another_version_is_refused_with_the_one_found_and_the_one_needed(tmp_path: Path) -> None:
    fake = fake_envoy(tmp_path, "echo 'envoy  version: abc123/1.31.2/Clean/RELEASE/BoringSSL'")
    with pytest.raises(EngineError, match=r"is Envoy 1\.31\.2, and akocore needs 1\.40\.x"):
        find_envoy(fake)


def test_a_program_that_is_no_envoy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"doesn't answer --version.*libz\.so: not found"):
        find_envoy(fake_envoy(tmp_path, "echo 'libz.so: not found' >&2; exit 127"))


def test_the_variable_names_the_envoy_when_no_option_does(envoy: Envoy) -> None:
    assert find_envoy(None, {"AKOCORE_ENVOY": str(envoy.path)}) == envoy
    with pytest.raises(EngineError, match="AKOCORE_ENVOY: /nowhere/envoy is not a program"):
        find_envoy(None, {"AKOCORE_ENVOY": "/nowhere/envoy"})


# ─── life and death


async def test_service_engines_start_side_by_side_and_stop_leaves_nothing_but_logs(
    envoy: Envoy, run_dir: Path
) -> None:
    changed: list[str] = []
    some = engines(run_dir, envoy, on_change=changed.append)
    await some.ensure("g", ["se-1", "se-2"])
    await until(lambda: answers(some, "se-1"))
    await until(lambda: answers(some, "se-2"))
    first, second = pid_of(some, "se-1"), pid_of(some, "se-2")
    assert os.getsid(first) == first  # not of our session: Ctrl-C isn't for it
    own = run_dir / "se-1"
    assert (own / "admin").is_socket()
    assert own.stat().st_mode & 0o007 == 0  # nobody else gets to its sockets
    assert some.running["se-1"].restarts == 0
    await some.ensure("g", ["se-1", "se-2"])
    assert (pid_of(some, "se-1"), pid_of(some, "se-2")) == (first, second)
    await some.stop(["se-1"])
    assert gone(first)
    assert list(some.running) == ["se-2"]
    await some.stop_all(grace_s=0)
    assert gone(second)
    assert left_behind(run_dir) == {"se-1.log", "se-2.log"}
    assert changed == ["se-1", "se-2", "se-1", "se-2"]


async def test_a_killed_envoy_is_back_at_once_and_the_record_says_why(
    envoy: Envoy, run_dir: Path
) -> None:
    some = engines(run_dir, envoy)
    await some.ensure("g", ["se-1"])
    await until(lambda: answers(some, "se-1"))
    killed = pid_of(some, "se-1")
    os.kill(killed, signal.SIGKILL)
    await until(lambda: some.running["se-1"].pid not in (None, killed), within_s=2)
    assert some.running["se-1"].restarts == 1
    assert some.running["se-1"].last_exit.startswith("SIGKILL")
    await until(lambda: answers(some, "se-1"))
    await some.stop_all(grace_s=0)


async def test_an_envoy_that_ends_at_once_is_tried_again_ever_slower(run_dir: Path) -> None:
    some = engines(run_dir, Envoy(fake_envoy(run_dir, "echo no luck; exit 3"), "1.40.0"))
    await some.ensure("g", ["se-1"])
    await until(lambda: some.running["se-1"].restarts >= 4)
    assert some.running["se-1"].last_exit == "exit code 3; no luck"
    await asyncio.sleep(0.3)
    assert some.running["se-1"].restarts <= 5
    await some.stop_all()
    assert left_behind(run_dir) == {"se-1.log", "fake-envoy"}


async def test_an_envoy_that_can_not_be_run_is_said_in_its_record(run_dir: Path) -> None:
    some = engines(run_dir, Envoy(run_dir / "missing", "1.40.0"))
    await some.ensure("g", ["se-1"])
    record = some.running["se-1"]
    assert record.pid is None
    assert record.last_exit == f"can't start: No such file or directory: {run_dir}/missing"
    await some.stop_all()


async def test_a_stopped_envoy_that_hangs_is_killed(run_dir: Path) -> None:
    script = fake_envoy(run_dir, "trap '' TERM; while :; do sleep 0.1; done")
    some = engines(run_dir, Envoy(script, "1.40.0"), kill_after_s=0.3)
    await some.ensure("g", ["se-1"])
    await asyncio.sleep(0.2)
    pid = pid_of(some, "se-1")
    await some.stop_all()
    assert gone(pid)


# ─── adoption


def abandon(run_dir: Path, envoy: Envoy, name: str = "se-1") -> int:
    """Start a Service Engine in an akocore of its own and kill -9 that; the Envoy's pid."""
    code = f"""
        import asyncio
        from pathlib import Path
        from akocore.engines.envoy.process import Engines, Envoy

        async def main():
            run_dir = Path({str(run_dir)!r})
            some = Engines(run_dir, Envoy(Path({str(envoy.path)!r}), {envoy.version!r}),
                           run_dir / "xds.sock")
            await some.ensure("g", [{name!r}])
            print(some.running[{name!r}].pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        child.kill()
    assert not gone(pid)
    return pid


async def test_after_kill_9_of_akocore_the_next_one_adopts_its_envoys(
    envoy: Envoy, run_dir: Path
) -> None:
    pid = abandon(run_dir, envoy)
    some = engines(run_dir, envoy)
    await some.ensure("g", ["se-1"])
    record = some.running["se-1"]
    assert (record.pid, record.adopted, record.restarts) == (pid, True, 0)
    assert abs(record.started - time.time()) < 10
    os.kill(pid, signal.SIGKILL)  # not a child of ours, and watched all the same
    await until(lambda: some.running["se-1"].pid not in (None, pid), within_s=2)
    assert not some.running["se-1"].adopted
    await some.stop_all(grace_s=0)
    assert left_behind(run_dir) == {"se-1.log"}


async def test_released_envoys_serve_on_and_are_adopted_again(envoy: Envoy, run_dir: Path) -> None:
    some = engines(run_dir, envoy)
    await some.ensure("g", ["se-1"])
    pid = pid_of(some, "se-1")
    some.release_all()
    assert not gone(pid)
    await some.ensure("g", ["se-1"])
    assert (pid_of(some, "se-1"), some.running["se-1"].adopted) == (pid, True)
    await some.stop_all(grace_s=0)
    assert gone(pid)


async def test_a_found_envoy_with_another_bootstrap_is_replaced(
    envoy: Envoy, run_dir: Path
) -> None:
    pid = abandon(run_dir, envoy)
    some = engines(run_dir, envoy, concurrency=2)
    await some.ensure("g", ["se-1"])
    assert pid_of(some, "se-1") != pid
    assert gone(pid)
    await some.stop_all(grace_s=0)


async def test_a_found_envoy_that_nobody_wants_is_stopped(envoy: Envoy, run_dir: Path) -> None:
    pid = abandon(run_dir, envoy, "se-old")
    some = engines(run_dir, envoy)
    await some.ensure("g", ["se-1"])
    assert some.running["se-old"].pid == pid
    await some.stop_unwanted(grace_s=0)
    assert gone(pid)
    assert list(some.running) == ["se-1"]
    await some.stop_all(grace_s=0)


async def test_an_envoy_without_a_pid_file_is_found_by_its_arguments(
    envoy: Envoy, run_dir: Path
) -> None:
    pid = abandon(run_dir, envoy)
    (run_dir / "se-1.pid").unlink()
    some = engines(run_dir, envoy)
    await some.ensure("g", ["se-1"])
    assert gone(pid)
    assert pid_of(some, "se-1") != pid
    await some.stop_all(grace_s=0)


async def test_a_recycled_pid_is_never_touched(envoy: Envoy, run_dir: Path) -> None:
    pid = abandon(run_dir, envoy)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: gone(pid))
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: ASYNC220
        file = run_dir / "se-1.pid"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": stranger.pid}))
        some = engines(run_dir, envoy)
        some.open()
        assert some.running == {}
        assert left_behind(run_dir) == {"se-1.log"}
        await some.ensure("g", ["se-1"])
        await some.stop_all(grace_s=0)
        assert stranger.poll() is None
        stranger.kill()


# ─── the directory


async def test_the_directory_belongs_to_one_akocore(envoy: Envoy, run_dir: Path) -> None:
    first, second = engines(run_dir, envoy), engines(run_dir, envoy)
    first.open()
    with pytest.raises(EngineError, match=rf"another akocore \(pid {os.getpid()}\) runs"):
        await second.ensure("g", ["se-1"])
    first.release_all()
    second.open()
    second.release_all()


async def test_a_directory_that_can_not_be_written_is_an_error_with_a_remedy(
    envoy: Envoy, run_dir: Path
) -> None:
    (run_dir / "file").write_text("")
    with pytest.raises(EngineError, match=r"can't be used: Not a directory.*--state"):
        await engines(run_dir / "file" / "run", envoy).ensure("g", ["se-1"])


async def test_a_socket_path_that_is_too_long_is_an_error_with_a_remedy(
    envoy: Envoy, run_dir: Path
) -> None:
    some = engines(run_dir / ("d" * 100), envoy)
    with pytest.raises(EngineError, match=r"too long for a unix socket.*at most 107.*--state"):
        await some.ensure("g", ["se-1"])
    assert some.running == {}
    some.release_all()


async def test_a_name_that_would_leave_the_directory_is_refused(
    envoy: Envoy, run_dir: Path
) -> None:
    some = engines(run_dir, envoy)
    with pytest.raises(EngineError, match="can't name a Service Engine"):
        await some.ensure("g", ["../se-1"])
    some.release_all()


# ─── what the admin interface says, with a controller that gives one listener


def listener(name: str, address: str, port: int) -> bytes:
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "any",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
        ],
    }
    message = listener_pb2.Listener()
    place = {"socket_address": {"address": address, "port_value": port}}
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    json_format.ParseDict({"name": name, "address": place, "filter_chains": [chain]}, message)
    return bytes(message.SerializeToString())


@asynccontextmanager
async def controller(xds_socket: Path, listeners: dict[str, bytes]) -> AsyncIterator[list[str]]:
    """A delta ADS server in twenty lines; yields the node ids that connected."""
    nodes: list[str] = []

    async def serve(requests: Any, _context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            nodes.extend([request.node.id] if request.node.id else [])
            if request.response_nonce:
                continue
            answer = discovery_pb2.DeltaDiscoveryResponse(type_url=request.type_url, nonce="1")
            if request.type_url.endswith(".Listener"):
                for name, value in listeners.items():
                    resource = answer.resources.add(name=name, version="1")
                    resource.resource.type_url = request.type_url
                    resource.resource.value = value
            yield answer

    handler = grpc.stream_stream_rpc_method_handler(
        serve,
        request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
        response_serializer=discovery_pb2.DeltaDiscoveryResponse.SerializeToString,
    )
    server = grpc.aio.server()
    service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler}),)
    )
    server.add_insecure_port(f"unix:{xds_socket}")
    await server.start()
    try:
        yield nodes
    finally:
        await server.stop(0)


async def get(address: str, port: int, *, close: bool) -> bytes:
    reader, writer = await asyncio.open_connection(address, port)
    head = b"connection: close\r\n" if close else b""
    writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n" + head + b"\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return answer


async def test_each_service_engine_counts_the_requests_of_each_virtual_service(
    envoy: Envoy, run_dir: Path
) -> None:
    place = ("127.20.30.40", 18080)
    some = engines(run_dir, envoy)
    async with controller(run_dir / "xds.sock", {"my-vs--0": listener("my-vs--0", *place)}):
        await some.ensure("g", ["se-1"])
        admin = some.admin("se-1")
        await until(admin.ready)
        assert await admin.listeners() == {"my-vs--0": place}
        for _ in range(3):
            assert b"200 OK" in await get(*place, close=True)
        assert await admin.requests_by_virtual_service() == {"my-vs--0": 3}
        assert (await admin.memory())["allocated"] > 1 << 20
        preflight([place], own=[pid_of(some, "se-1")])
        with pytest.raises(EngineError, match=rf"taken by envoy \(pid {pid_of(some, 'se-1')}\)"):
            preflight([place])
        await some.stop_all()


async def test_a_controller_that_comes_back_is_found_within_two_seconds(
    envoy: Envoy, run_dir: Path
) -> None:
    some = engines(run_dir, envoy)
    async with controller(run_dir / "xds.sock", {}) as nodes:
        await some.ensure("g", ["se-1"])
        await until(lambda: nodes == ["se-1"])
    await asyncio.sleep(1)
    async with controller(run_dir / "xds.sock", {}) as nodes:
        await until(lambda: nodes == ["se-1"], within_s=2)
    await some.stop_all(grace_s=0)


async def test_stop_tells_a_kept_connection_to_go_and_waits_until_it_went(
    envoy: Envoy, run_dir: Path
) -> None:
    place = ("127.20.30.41", 18081)
    some = engines(run_dir, envoy)
    async with controller(run_dir / "xds.sock", {"vs": listener("vs", *place)}):
        await some.ensure("g", ["se-1"])
        await until(some.admin("se-1").ready)
        reader, writer = await asyncio.open_connection(*place)
        request = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"
        writer.write(request)
        assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
        stop = asyncio.create_task(some.stop_all())
        await asyncio.sleep(0.3)
        assert not stop.done()
        writer.write(request)
        assert b"connection: close" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(stop, 2)


# ─── before the fact


def test_preflight_names_an_address_that_is_not_of_this_machine() -> None:
    with pytest.raises(EngineError, match=r"^192\.0\.2\.7 is not an address of this machine"):
        preflight([("192.0.2.7", 8080), ("127.0.0.1", 0)])


def test_preflight_names_the_process_that_has_the_port() -> None:
    with socket.create_server(("0.0.0.0", 0)) as holder:
        port = holder.getsockname()[1]
        name = Path(sys.executable).name
        with pytest.raises(EngineError, match=rf"taken by {name}\S* \(pid {os.getpid()}\)"):
            preflight([("127.20.30.42", port)])


def test_a_low_port_without_the_privilege_suggests_a_port_offset() -> None:
    code = (
        "import os\n"
        "from akocore.engines.envoy.ports import may_listen, EngineError\n"
        "if os.getuid() == 0: os.setgroups([]); os.setuid(65534)\n"
        "try: may_listen(1)\n"
        "except EngineError as err: print(err)"
    )
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first <= 1:
        pytest.skip("every port is free here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--port-offset 8000" in done.stdout
