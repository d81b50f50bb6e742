"""Endpoints that are none, asked of real Envoys.  No way here leads round."""

from __future__ import annotations

import asyncio
from pathlib import Path

from akocore import status
from e2e.house import APP, CLASS, House
from e2e.running import OFFSET, Running

CLASS_SMALL = CLASS.replace("SIZE", "SMALL")


def app(name: str, host: str, address: str, port: int) -> str:
    """An application at an address of its own."""
    text = APP.replace("NAME", name).replace("HOST", host).replace("PATH", "/")
    return text.replace("127.0.0.1", address).replace("BACKEND", str(port))


async def test_a_vip_is_no_endpoint(house: House) -> None:
    house.write("class.yaml", CLASS_SMALL)
    good = APP.replace("NAME", "good").replace("HOST", "good.test").replace("PATH", "/")
    good = good.replace("critical-ic", "avi-lb").replace("BACKEND", str(house.backend))
    house.write("good.yaml", good)
    await house.until(lambda: "good.test" in house.addresses())
    vip = house.addresses()["good.test"]
    await house.until_status(vip, "good.test", 200)
    # Hosts of another virtual service: at this VIP nobody would know them, so nothing goes round.
    house.write("other.yaml", app("other", "other.test", vip, 80 + house.offset))
    house.write("mapped.yaml", app("mapped", "mapped.test", f'"::ffff:{vip}"', 80 + house.offset))
    await house.until(lambda: len(house.addresses()) == 3)
    shown = house.addresses()
    assert shown["other.test"] == shown["mapped.test"] != vip
    for one in ("other", "mapped"):
        await house.until_status(shown["other.test"], f"{one}.test", 503)
    assert await house.get(vip, "good.test") == 200
    for key in ("default/other", "default/mapped"):
        (said,) = status.ingress_refusals(house.serve.reconciler, key)
        assert (said.reason, said.field) == (
            *("EndpointNotAllowed", "spec.rules[0].http.paths[0].backend.service"),
        )
        assert f"{vip} (a VIP of Network default), in EndpointSlice {key}" in said.remedy
    house.app("other", "other.test")
    await house.until_status(shown["other.test"], "other.test", 200)
    assert not status.ingress_refusals(house.serve.reconciler, "default/other")


async def test_akocores_own_metrics_are_no_endpoint(tmp_path: Path) -> None:
    running = Running(tmp_path, 1)
    running.options = ["--metrics-listen", "127.0.0.1:9810"]
    running.write("class.yaml", CLASS_SMALL)
    running.write("own.yaml", app("own", "own.test", "127.0.0.1", 9810))
    async with running:
        shown = await running.until_up_to_date(1)
        reader, writer = await asyncio.open_connection(shown["own.test"], 80 + OFFSET)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: own.test\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        (item,) = await running.ask("ingress")
    assert answer.startswith(b"HTTP/1.1 503 "), answer[:200]
    (said,) = item["status"]["conditions"]
    assert (said["type"], said["reason"]) == ("Refused", "EndpointNotAllowed")
    assert "127.0.0.1 (a port of akocore's own)" in said["message"]


async def test_loopback_is_no_endpoint_where_that_is_said(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    running = Running(tmp_path, port)
    running.config = "endpoints: {allowLoopback: false}\n"
    running.write("class.yaml", CLASS_SMALL)
    running.dummy("one", 1, "critical-ic")
    async with running:
        await running.until_up_to_date(1)
        (pool,) = await running.ask("pools")
        (item,) = await running.ask("ingress")
    server.close()
    assert pool["status"] == {"servers": [], "state": "down"}
    assert "127.0.0.1 (loopback)" in item["status"]["conditions"][0]["message"]
