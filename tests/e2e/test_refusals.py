"""What engines refuse, below what translation knows: told where it is, and not elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from envoy.config.route.v3 import route_components_pb2 as route_pb2

from akocore import realise, realise_gateway, status, status_gateway
from akocore.engines.envoy import gateway, http_rule, resources
from akocore.engines.envoy.http_rule import At
from akocore.engines.envoy.resources import SRDS, Encoded
from akocore.kube.gateway_objects import GATEWAY
from akocore.model import HostModel, Route
from akocore.model_http import HttpHost, HttpRule
from akocore.translate.tls import Certificate
from e2e.house import House, house_over
from e2e.test_gateway_api import CLASS, SERVICE
from engines.gateway_rig import until
from engines.refusals import BAD_CERTIFICATES, certificate_of, spoilt

pytestmark = pytest.mark.real

TLS = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners:
  - name: good
    port: 443
    protocol: HTTPS
    hostname: good.example.test
    tls: {certificateRefs: [{name: good}]}
  - name: odd
    port: 443
    protocol: HTTPS
    hostname: odd.example.test
    tls: {certificateRefs: [{name: odd}]}
"""


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_over(tmp_path) as one:
        one.write("class.yaml", CLASS)
        one.write("hello.yaml", SERVICE.replace("BACKEND", str(one.backend)))
        yield one


def _secret(name: str, found: Certificate) -> str:
    crt, key = (part.decode().replace("\n", "\n    ") for part in (found.chain, found.key))
    return (
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\n"
        f"stringData:\n  tls.crt: |\n    {crt}\n  tls.key: |\n    {key}\n"
    )


def _conditions(house: House, listener: str) -> dict[str, tuple[bool, str, str]]:
    said = status_gateway.gateway(house.serve.reconciler, "default/web")
    if said is None:
        return {}
    return {
        one.type: (one.true, one.reason, one.message)
        for found in said.listeners
        if found.name == listener
        for one in found.conditions
    }


async def _shown(vip: str, port: int, name: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(vip, port, ssl=context, server_hostname=name)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_certificate_that_engines_cannot_use_is_told_on_its_listener(house: House) -> None:
    house.write("good.yaml", _secret("good", certificate_of("good.example.test")))
    house.write("odd.yaml", _secret("odd", certificate_of("odd.example.test")))
    house.write("web.yaml", TLS)

    def programmed(listener: str) -> bool:
        return _conditions(house, listener).get("Programmed", (False,))[0]

    await house.until(lambda: programmed("good") and programmed("odd"))
    said = status_gateway.gateway(house.serve.reconciler, "default/web")
    assert said is not None
    vip = said.addresses[0]
    realiser = house.serve.reconciler.realiser
    realiser.certificates["default/odd"] = BAD_CERTIFICATES["another's key"]()
    realiser.push_secrets(["default/odd"])
    realiser.publish()
    await house.until(lambda: not programmed("odd"))
    for type_, reason in (("Programmed", "Invalid"), ("ResolvedRefs", "InvalidCertificateRef")):
        true, said_reason, message = _conditions(house, "odd")[type_]
        assert (true, said_reason) == (False, reason)
        assert message.startswith("spec.listeners[1].tls.certificateRefs: ")
        assert "Secret default/odd" in message
        assert message.endswith("Issue another certificate.")
        assert "\n" not in message
    assert programmed("good")
    assert await _shown(vip, 443 + house.offset, "good.example.test")
    refused = status_gateway.refusals(house.serve.reconciler, GATEWAY, "default/web") or []
    assert [(one.field, one.reason) for one in refused] == [
        ("spec.listeners[1].tls.certificateRefs", "InvalidCertificateRef")
    ]
    house.write("odd.yaml", _secret("odd", certificate_of("odd.example.test")))
    await house.until(lambda: programmed("odd"))
    assert await _shown(vip, 443 + house.offset, "odd.example.test")


SHARED = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners: [{name: http, port: 80, protocol: HTTP}]
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: NAME}
spec:
  parentRefs: [{name: web}]
  hostnames: [AUTHORITY]
  rules:
  - matches: [{path: {type: PathPrefix, value: PATH}}]
    filters: [FILTER]
"""


def _route(name: str, path: str, to: str, host: str = "shared.test") -> str:
    target = f"{{type: RequestRedirect, requestRedirect: {{hostname: {to}, statusCode: 302}}}}"
    text = ROUTE.replace("NAME", name).replace("PATH", path).replace("FILTER", target)
    return text.replace("AUTHORITY", host)


class Shared:
    """A host that routes share, and what an engine refuses of one of them, below translation."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.vip = ""

    async def start(self) -> None:
        self.house.write("web.yaml", SHARED)
        for name in ("good", "zbad"):
            self.house.write(f"{name}.yaml", _route(name, f"/{name}", "v1.test"))

        async def served() -> bool:
            said = status_gateway.gateway(self.house.serve.reconciler, "default/web")
            self.vip = said.addresses[0] if said is not None and said.addresses else ""
            return bool(self.vip) and await self.to("/good") == await self.to("/zbad") == "v1.test"

        await until(served)

    async def to(self, path: str, host: str = "shared.test") -> str:
        url = f"http://{self.vip}:{80 + self.house.offset}{path}"
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.get(url, headers={"host": host}, allow_redirects=False) as got,
            ):
                if got.status != 302:
                    return str(got.status)
                return got.headers["location"].split("/")[2].partition(":")[0]
        except aiohttp.ClientError as err:
            return type(err).__name__

    async def leads(self, path: str, to: str, host: str = "shared.test") -> None:
        """Until both engines say so: each connection is another one's turn."""

        async def all_do() -> bool:
            return {await self.to(path, host) for _ in range(8)} == {to}

        await until(all_do, 40)

    def said(self, name: str) -> list[tuple[str, str]]:
        id_ = ("HTTPRoute", f"default/{name}")
        found = status_gateway.refusals(self.house.serve.reconciler, *id_) or []
        return [(one.field, one.reason) for one in found]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Translation that lets something pass: a rule to "bad.test" is one that Envoy refuses."""
    plain = http_rule.routes

    def routes(rule: HttpRule, at: At) -> Iterator[route_pb2.Route]:
        for one in plain(rule, at):
            if rule.redirect is not None and rule.redirect.host.startswith("bad"):
                one.request_headers_to_remove.append(":path")
            yield one

    monkeypatch.setattr(gateway, "routes", routes)


@pytest.mark.usefixtures("broken")
async def test_of_a_shared_host_just_the_refused_rule_is_left_out(house: House) -> None:
    shared = Shared(house)
    await shared.start()
    house.write("zbad.yaml", _route("zbad", "/zbad", "bad.test"))
    await shared.leads("/zbad", "500")
    await shared.leads("/good", "v1.test")
    house.write("good.yaml", _route("good", "/good", "v2.test"))
    await shared.leads("/good", "v2.test")
    assert shared.said("zbad") == [("spec.rules[0]", "EngineRejected")]
    assert shared.said("good") == []
    told = [e.object for e in house.serve.events if e.reason == "EngineRejected"]
    assert told == ["HTTPRoute/default/zbad"]  # once, of all engines together
    house.write("zbad.yaml", _route("zbad", "/zbad", "v3.test"))
    await shared.leads("/zbad", "v3.test")
    await house.until(lambda: shared.said("zbad") == [])
    catalog = house.serve.ads.catalog("Default-Group")
    assert not any("trial_" in name for name in catalog.resources[SRDS])


@pytest.mark.usefixtures("broken")
async def test_what_engines_refused_of_a_host_is_left_out_on_new_ones_from_the_start(
    house: House,
) -> None:
    shared = Shared(house)
    await shared.start()
    house.write("zbad.yaml", _route("zbad", "/zbad", "bad.test"))
    await shared.leads("/zbad", "500")
    for running in house.serve.engines.running.values():
        if running.pid is not None:
            os.kill(running.pid, signal.SIGKILL)
    await house.until(lambda: not house.serve.ads.engines)
    await until(lambda: len(house.serve.ads.engines) == 2, 40)
    await shared.leads("/good", "v1.test")
    await shared.leads("/zbad", "500")
    assert shared.said("zbad") == [("spec.rules[0]", "EngineRejected")]


@pytest.mark.usefixtures("broken")
async def test_a_host_that_is_bad_from_the_start_has_its_good_rules(house: House) -> None:
    house.write("zbad.yaml", _route("zbad", "/zbad", "bad.test"))
    for n in range(20):
        house.write(
            f"h{n}.yaml", _route(f"h{n}", "/", "bad.test" if n == 7 else "v1.test", f"h{n}.test")
        )
    shared = Shared(house)
    house.write("good.yaml", _route("good", "/good", "v1.test"))
    house.write("web.yaml", SHARED)
    await house.until(
        lambda: bool(
            (s := status_gateway.gateway(house.serve.reconciler, "default/web")) and s.addresses
        )
    )
    said = status_gateway.gateway(house.serve.reconciler, "default/web")
    assert said is not None
    shared.vip = said.addresses[0]
    await shared.leads("/good", "v1.test")
    await shared.leads("/zbad", "500")
    for n in range(20):
        await shared.leads("/", "500" if n == 7 else "v1.test", f"h{n}.test")
        assert shared.said(f"h{n}") == ([("spec.rules[0]", "EngineRejected")] if n == 7 else [])
    house.write("h7.yaml", _route("h7", "/", "v1.test", "h7.test"))
    await shared.leads("/", "v1.test", "h7.test")


INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME}
spec:
  ingressClassName: avi-lb
  rules:
  - host: shared.test
    http:
      paths:
      - {path: PATH, pathType: Prefix, backend: {service: {name: SERVICE, port: {number: 80}}}}
"""


class SharedByIngresses(Shared):
    """Likewise a host of Ingresses."""

    async def start(self, *names: str) -> None:
        self.house.write("v2.yaml", SERVICE.replace("BACKEND", str(self.house.backend)))
        for name in names or ("good", "zbad"):
            self.write(name)

        async def served() -> bool:
            for one in status.ingresses(self.house.serve.reconciler):
                for point in one["status"]["loadBalancer"]["ingress"]:
                    self.vip = point["ip"]
            paths = [f"/{name}" for name in names or ("good", "zbad")]
            return bool(self.vip) and {await self.to(path) for path in paths} == {"200"}

        await until(served)

    def write(self, name: str, service: str = "hello") -> None:
        text = INGRESS.replace("NAME", name).replace("PATH", f"/{name}")
        self.house.write(f"{name}.yaml", text.replace("SERVICE", service))

    def said(self, name: str) -> list[tuple[str, str]]:
        found = status.ingress_refusals(self.house.serve.reconciler, f"default/{name}")
        return [(one.field, one.reason) for one in found]


@pytest.fixture
def broken_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Translation that lets something pass: a path to Service "bad" is one that Envoy refuses."""
    plain = resources._fill_route

    def fill(one: route_pb2.Route, route: Route) -> None:
        plain(one, route)
        if route.pool.backend is None and "bad" in route.path and not route.answer:
            one.request_headers_to_remove.append(":path")

    monkeypatch.setattr(resources, "_fill_route", fill)


@pytest.mark.usefixtures("broken_path")
async def test_of_a_host_of_ingresses_just_the_refused_path_is_left_out(house: House) -> None:
    shared = SharedByIngresses(house)
    await shared.start()
    shared.write("zbad", "gone")  # a 503, if engines took it
    await shared.leads("/zbad", "500")
    await shared.leads("/good", "200")
    shared.write("good", "gone")
    await shared.leads("/good", "503")
    field = "spec.rules[0].http.paths[0]"
    await house.until(lambda: (field, "EngineRejected") in shared.said("zbad"))
    assert [reason for _, reason in shared.said("good")] == ["ServiceNotFound"]
    told = [e.object for e in house.serve.events if e.reason == "EngineRejected"]
    assert told == ["Ingress/default/zbad"]
    shared.write("good")
    shared.write("zbad")
    await shared.leads("/good", "200")
    await shared.leads("/zbad", "200")
    await house.until(lambda: shared.said("zbad") == [])
    catalog = house.serve.ads.catalog("Default-Group")
    assert not any("trial_" in name for name in catalog.resources[SRDS])


async def test_of_paths_that_are_bad_together_the_youngest_is_left_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of c and e is good alone."""
    plain = realise.scope

    def scope(vs: str, port: int, model: HostModel) -> Encoded:
        one = plain(vs, port, model)
        gone = {route.path for route in model.routes if route.pool.backend is None}
        mine = {route.path for route in model.routes if not route.answer}
        return spoilt(one) if {"/c", "/e"} <= mine and "/e" in gone else one

    monkeypatch.setattr(realise, "scope", scope)
    shared = SharedByIngresses(house)
    await shared.start(*"abcdefg")
    shared.write("e", "gone")
    await shared.leads("/e", "500")
    await house.until(lambda: ("spec.rules[0].http.paths[0]", "EngineRejected") in shared.said("e"))
    for name in "abcdfg":
        assert shared.said(name) == []
        shared.write(name, "gone")
        await shared.leads(f"/{name}", "503")
        shared.write(name)
        await shared.leads(f"/{name}", "200")
    (house.directory / "c.yaml").unlink()
    await shared.leads("/c", "404")
    await shared.leads("/e", "503")  # nothing is wrong with it without c
    await house.until(lambda: "EngineRejected" not in [why for _, why in shared.said("e")])
    catalog = house.serve.ads.catalog("Default-Group")
    assert not any("trial_" in name for name in catalog.resources[SRDS])


async def test_of_rules_that_are_bad_together_the_youngest_routes_is_left_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = realise_gateway.http_scope

    def scope(vs: str, port: int, chain: str, model: HttpHost, **more: Any) -> Encoded:
        one = plain(vs, port, chain, model, **more)
        to = {rule.redirect.host for rule in model.rules if rule.redirect is not None}
        return spoilt(one) if {"v2.test", "v3.test"} <= to else one

    monkeypatch.setattr(realise_gateway, "http_scope", scope)
    shared = Shared(house)
    await shared.start()
    house.write("zbad.yaml", _route("zbad", "/zbad", "v2.test"))
    await shared.leads("/zbad", "v2.test")
    house.write("good.yaml", _route("good", "/good", "v3.test"))
    await shared.leads("/good", "v3.test")
    await shared.leads("/zbad", "500")
    await house.until(lambda: shared.said("zbad") == [("spec.rules[0]", "EngineRejected")])
    assert shared.said("good") == []
    house.write("good.yaml", _route("good", "/good", "v1.test"))
    await shared.leads("/zbad", "v2.test")
    await house.until(lambda: shared.said("zbad") == [])
