"""10,000 Ingresses, of which 500 are broken: each in one of the ways that people break them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from akocore.cli.dummy import manifests
from e2e.running import Backend, Client, Running

COUNT, EVERY = 10_000, 20

Ingress = dict[str, Any]
Break = Callable[[Ingress], object]


def _rule(ingress: Ingress) -> dict[str, Any]:
    rule: dict[str, Any] = ingress["spec"]["rules"][0]
    return rule


def _path(ingress: Ingress) -> dict[str, Any]:
    path: dict[str, Any] = _rule(ingress)["http"]["paths"][0]
    return path


def _host(form: str) -> Break:
    return lambda i: _rule(i).update(host=form.format(_rule(i)["host"]))


def _service(**fields: object) -> Break:
    return lambda i: _path(i)["backend"]["service"].update(fields)


BREAKS: dict[str, Break] = {
    "InvalidHost": _host("{}:8080"),
    "InvalidHost upper": _host("Upper.{}"),
    "InvalidHost dot": _host("{}."),
    "InvalidHost address": lambda i: _rule(i).update(host="10.1.2.3"),
    "InvalidPath": lambda i: _path(i).update(path="no-slash"),
    "InvalidPath space": lambda i: _path(i).update(path="/a b?c"),
    "InvalidPathType": lambda i: _path(i).update(pathType="Regex"),
    "ServiceNotFound": _service(name="nobody"),
    "PortNotFound": _service(port={"name": "nothing"}),
    "PortNotFound number": _service(port={"number": 4711}),
    "InvalidBackend": lambda i: _path(i).update(backend={}),
    "IngressClassNotFound": lambda i: i["spec"].update(ingressClassName="nowhere"),
    "NoRules": lambda i: i["spec"].update(rules=[]),
    "SecretNotFound": lambda i: i["spec"].update(tls=[{"secretName": "nothing"}]),
    "MissingSecret": lambda i: i["spec"].update(tls=[{"hosts": [_rule(i)["host"]]}]),
    "TLSHostWithoutRule": lambda i: i["spec"].update(
        tls=[{"hosts": ["elsewhere.test"], "secretName": "nothing"}]
    ),
    "DuplicateHostPath": _host("app1.avi.iberia.local"),
}


async def test_500_broken_of_10000_ingresses_hurt_no_other(tmp_path: Path) -> None:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", 0)
    running = Running(tmp_path, server.sockets[0].getsockname()[1])
    broken: dict[str, str] = {}
    for i in range(1, COUNT + 1):
        items = manifests("app", i, endpoint=running.endpoint)
        if i % EVERY == 0:
            reason = list(BREAKS)[i // EVERY % len(BREAKS)]
            BREAKS[reason](items[-1])
            broken[f"app{i}"] = reason.partition(" ")[0]
        running.write(f"app{i}.json", {"kind": "List", "items": items})
    good = {f"app{i}.avi.iberia.local" for i in range(1, COUNT + 1) if f"app{i}" not in broken}
    assert len(broken) == COUNT // EVERY
    async with running:
        async with asyncio.timeout(120):
            shown: dict[str, str] = {}
            while not good <= shown.keys():
                await asyncio.sleep(0.3)
                shown = await running.addresses()
        client = Client()
        for host in good:
            assert await client.get(shown[host], host) == 200, host
        client.close()
        for engine in (await running.engines()).values():
            assert (engine["nacks"], engine["rejected"], engine["state"]) == (0, 0, "up")
        said = {
            item["metadata"]["name"]: {c["reason"] for c in item["status"]["conditions"]}
            for item in await running.ask("ingress")
        }
        assert {name: reasons for name, reasons in said.items() if reasons} == {
            name: {reason} for name, reason in broken.items()
        }
    server.close()
