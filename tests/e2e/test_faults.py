"""A fault of akocore's own over one object is that object's refusal: its neighbours are served.

A bug can't be written down in a manifest, so one is planted: a function of ours raises for the
object that has a certain word in it.  An edit takes the word out.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Struct

from akocore.serve import Serve
from akocore.status_gateway import gateway
from e2e.house import APP, GATEWAY_CLASS, House, house_over
from e2e.house import CLASS as INGRESS_CLASS

WORD = "plant"
NET = "10.99.99.0/24"  # the same where just a network can be
ADDRESS = "127.99.99.9"  # or an address
EDITED = {WORD: "flower", NET: "0.0.0.0/0", ADDRESS: "127.0.0.1", "8999": "8998"}

BASE = """
---
apiVersion: networking.x-k8s.io/v1alpha1
kind: GatewayClass
metadata: {name: gwc}
spec:
  controller: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: critical.infra}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: tls, port: 8443, protocol: TLS, tls: {mode: Passthrough}}
  - {name: tcp, port: 8080, protocol: TCP}
  - {name: udp, port: 8080, protocol: UDP}
"""
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: bad}
spec:
  gatewayClassName: avi-lb
  listeners: [LISTENER]
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: KIND
metadata: {name: NAME}
spec:
  parentRefs: [{name: web}]
  hostnames: [HOST]
  rules: [{MATCHES backendRefs: [{name: TO, port: 80}]}]
"""
L4_GATEWAY = """
apiVersion: networking.x-k8s.io/v1alpha1
kind: Gateway
metadata: {name: bad, annotations: {is: plant}}
spec:
  gatewayClassName: gwc
  listeners:
  - protocol: TCP
    port: 80
    routes:
      selector: {matchLabels: {ako.vmware.com/gateway-namespace: default,
                               ako.vmware.com/gateway-name: bad}}
      group: v1
      kind: Service
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: bad, annotations: {is: IS}}
spec: {type: TYPE, ports: [{port: 80}], loadBalancerSourceRanges: [RANGE]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: bad, labels: {kubernetes.io/service-name: bad}}
addressType: IPv4
ports: [{port: BACKEND}]
endpoints: [{addresses: [ADDRESS]}]
"""
INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: bad}
spec:
  ingressClassName: critical-ic
  rules:
  - host: bad.test
    http:
      paths:
      - path: /PATH
        pathType: Prefix
        backend: {service: {name: bad, port: {number: 80}}}
"""
POLICY = """
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: bad}
spec:
  targetRefs: [{group: "", kind: Service, name: bad}]
  validation: {hostname: plant.test, wellKnownCACertificates: System}
"""
SETTING = """
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: bad, annotations: {akocore.io/scale-out: plant}}
spec: {network: {names: [vips]}}
"""
NETWORK = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: bad}
spec: {subnet: 127.99.99.0/24, vipRanges: [{begin: 127.99.99.7, end: ADDRESS}]}
"""


def plain(kind: str = "ClusterIP", net: str = "0.0.0.0/0", address: str = "127.0.0.1") -> str:
    out = SERVICE.replace("TYPE", kind).replace("RANGE", net).replace("ADDRESS", address)
    return out.replace("is: IS", "is: nothing")


def route(kind: str, *, name: str = "bad", host: str = "bad.test", path: str = "", to: str) -> str:
    out = ROUTE.replace("KIND", kind).replace("NAME", name).replace("TO", to)
    if kind in ("TCPRoute", "UDPRoute"):
        out = out.replace("  hostnames: [HOST]\n", "")
    if kind == "HTTPRoute":
        out = out.replace("MATCHES", f"matches: [{{path: {{value: /{path}}}}}],")
    return out.replace("HOST", host).replace("MATCHES", "")


class Wing(Struct, frozen=True):
    """Where the fault is: the function that raises for what has the word in it."""

    at: str  # "module:function"
    text: str
    told: str  # who is told
    serves: str = ""  # a host that is served once it is edited: by the Ingress' VIP or "web"'s
    on: str = "ingress"


SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: bad, annotations: {is: plant}}
type: kubernetes.io/tls
data: {tls.crt: "", tls.key: ""}
---
"""
TLS_INGRESS = f"---{INGRESS}  tls: [{{hosts: [bad.test], secretName: bad}}]\n"
_INGRESS = "Ingress/default/bad"
_SERVICE = "Service/default/bad"
_GATEWAY = "Gateway.gateway.networking.k8s.io/default/bad"
_PORT = "{name: a, port: 8999, protocol: HTTP}"
_HTTP = "{name: a, port: 80, protocol: HTTP, hostname: plant.test}"
_BAD_INGRESS = plain() + "---" + INGRESS.replace("PATH", WORD)
WINGS = {
    "the view of an Ingress": Wing("store:view", _BAD_INGRESS, _INGRESS, "bad.test"),
    "the model of a host": Wing("reconcile:host_model", _BAD_INGRESS, _INGRESS, "bad.test"),
    "the scope of a host": Wing("realise:scope", _BAD_INGRESS, _INGRESS, "bad.test"),
    "what an Ingress refers to": Wing("store:refers", _BAD_INGRESS, _INGRESS, "bad.test"),
    "the view of a Service": Wing(
        "translate.services:view",
        plain("LoadBalancer").replace("nothing", WORD),
        _SERVICE,
    ),
    "the model of a listener": Wing(
        "translate.services:service_listener", plain("LoadBalancer", NET), _SERVICE
    ),
    "the listener of a Service": Wing(
        "realise_l4:l4_listener", plain("LoadBalancer", NET), _SERVICE
    ),
    "the cluster of a Service": Wing(
        "realise:cluster",
        plain(address=ADDRESS) + "---" + INGRESS.replace("PATH", "flower"),
        _SERVICE,
        "bad.test",
    ),
    "the view of a Gateway of L4": Wing(
        "translate.gateways:view", L4_GATEWAY, "Gateway/default/bad"
    ),
    "the listeners of a Gateway": Wing(
        "gateway_api:listeners", GATEWAY.replace("LISTENER", _HTTP), _GATEWAY
    ),
    "the port of a Gateway": Wing(
        "realise_gateway:gateway_listener", GATEWAY.replace("LISTENER", _PORT), _GATEWAY
    ),
    **{
        f"the rules of a {kind}": Wing(
            "gateway_api:rules_of", plain() + "---" + route(kind, to=WORD), f"{kind}/default/bad"
        )
        for kind in ("GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
    },
    "the rules of an HTTPRoute": Wing(
        "gateway_api:rules_of",
        plain() + "---" + route("HTTPRoute", path=WORD, to="bad"),
        "HTTPRoute/default/bad",
        "bad.test",
        "web",
    ),
    "one of two routes of a host": Wing(
        "realise_gateway:http_scope",
        plain() + "---" + route("HTTPRoute", host="shared.test", path=WORD, to="bad"),
        "HTTPRoute/default/bad",
        "shared.test",
        "web",
    ),
    "a certificate": Wing("realise:certificate", SECRET + plain() + TLS_INGRESS, _INGRESS),
    "a policy": Wing(
        "gateway_api:policy_view", plain() + "---" + POLICY, "BackendTLSPolicy/default/bad"
    ),
    "a setting": Wing("infrastructure:infra_of", SETTING, "AviInfraSetting/bad"),
    "a Network": Wing(
        "infrastructure:check_network", NETWORK.replace("ADDRESS", ADDRESS), "Network/bad"
    ),
}


def plant(patch: pytest.MonkeyPatch, at: str) -> None:
    """Have a function raise for what has the word in it."""
    module_name, _, name = at.partition(":")
    module = importlib.import_module(f"akocore.{module_name}")
    real: Callable[..., Any] = getattr(module, name)

    def faulty(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(one) if hasattr(one, "__next__") else one for one in args)
        said = repr((args, kwargs))
        if any(word in said for word in EDITED):
            raise RuntimeError(f"a fault that was planted in {name}")
        return real(*args, **kwargs)

    patch.setattr(module, name, faulty)


def edited(text: str) -> str:
    for word, other in EDITED.items():
        text = text.replace(word, other)
    return text


def said(serve: Serve, object_: str) -> str:
    """The reason of the last event of an object."""
    last = [event for event in serve.events if event.object == object_]
    return last[-1].reason if last else ""


def neighbours(house: House, number: int) -> str:
    """An Ingress and a route that come in the same batch as the one at fault."""
    app = APP.replace("NAME", f"n{number}").replace("HOST", f"n{number}.test")
    return "---".join(
        [
            app.replace("PATH", "/"),
            route("HTTPRoute", name=f"n{number}", host=f"r{number}.test", to="good"),
            route("HTTPRoute", name="good", host="shared.test", path="good", to="good"),
        ]
    )


def write(house: House, number: int, text: str) -> None:
    all_ = f"{neighbours(house, number)}---{text}"
    house.write(f"batch-{number}.yaml", all_.replace("BACKEND", str(house.backend)))


def vip(house: House) -> str:
    said = gateway(house.serve.reconciler, "default/web")
    return said.addresses[0] if said is not None and said.addresses else ""


@pytest_asyncio.fixture
async def bare(tmp_path: Path) -> AsyncIterator[House]:
    async with house_over(tmp_path) as made:
        good = plain().replace("bad", "good")
        made.write("good.yaml", good.replace("BACKEND", str(made.backend)))
        made.write("class.yaml", INGRESS_CLASS.replace("SIZE", "SMALL") + GATEWAY_CLASS + BASE)
        yield made


@pytest.mark.parametrize("name", WINGS)
async def test_a_fault_over_one_object_is_its_refusal_and_its_neighbours_are_served(
    bare: House,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house, wing = bare, WINGS[name]
    caplog.set_level(logging.ERROR)
    await house.until(lambda: bool(vip(house)))
    plant(monkeypatch, wing.at)
    write(house, 1, wing.text)
    await house.until(lambda: said(house.serve, wing.told) == "InternalError")
    await house.until(lambda: "n1.test" in house.addresses())
    address = house.addresses()["n1.test"]
    await house.until_status(address, "n1.test", 200)
    await house.until_status(vip(house), "r1.test", 200)
    await house.until_status(vip(house), "shared.test", 200, "/good")
    # What it serves on is no state that later changes stumble over.
    write(house, 2, "")
    await house.until(lambda: "n2.test" in house.addresses())
    await house.until_status(house.addresses()["n2.test"], "n2.test", 200)
    traces = [r for r in caplog.records if r.exc_info and "internal_error" in r.message]
    assert len(traces) == 1, "the traceback is in the log once a cause"
    # An edit brings it back.
    write(house, 1, edited(wing.text))
    await house.until(lambda: said(house.serve, wing.told) != "InternalError")
    if wing.serves:
        where = vip(house) if wing.on == "web" else address
        await house.until_status(where, wing.serves, 200, "/flower")
    assert not house.serve.reconciler.faults


TABLES = {
    "ingress": ("status:ingress", "bad"),
    "vs": ("status:virtual_service", "my-cluster--default-bad"),
    "service": ("status_l4:service", "bad"),
    "httproute": ("status_gateway:_route_shown", "bad"),
    "gateway": ("status_gateway:_gateway_shown", "bad"),
    "pools": ("status:_pools", "bad.test"),
    "se": ("status:_service_engine", "Default-Group-se-2"),
}


def break_for(patch: pytest.MonkeyPatch, at: str, name: str) -> None:
    """Have a function raise for an object of this name."""
    module_name, _, function = at.partition(":")
    module = importlib.import_module(f"akocore.{module_name}")
    real: Callable[..., Any] = getattr(module, function)

    def faulty(at: object, thing: Any, *args: Any, **kwargs: Any) -> Any:
        known = thing[1] if isinstance(thing, tuple) else getattr(thing, "name", thing)
        if known.rpartition("/")[2] == name:
            raise RuntimeError("a fault that was planted")
        return real(at, thing, *args, **kwargs)

    patch.setattr(module, function, faulty)


async def akocore_get(house: House, *words: str) -> tuple[str, str]:
    command = (sys.executable, "-m", "akocore", "get", *words)
    process = await asyncio.create_subprocess_exec(
        *(*command, "--state", str(house.serve.control_socket.parent)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, said = await process.communicate()
    assert process.returncode == 0, said
    return out.decode(), said.decode()


async def test_an_object_that_cannot_be_shown_hides_no_other(
    bare: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house = bare
    write(
        house,
        1,
        "---".join(
            [
                plain("LoadBalancer"),
                plain("LoadBalancer").replace("name: bad", "name: fine"),
                INGRESS.replace("PATH", ""),
                route("HTTPRoute", host="bad-route.test", to="bad"),
                GATEWAY.replace("LISTENER", _HTTP),
            ]
        ),
    )
    await house.until(lambda: {"bad.test", "n1.test"} <= house.addresses().keys())
    await house.until(lambda: bool(vip(house)))
    for kind, (at, name) in TABLES.items():
        before, said_before = await akocore_get(house, kind)
        assert "InternalError" not in before + said_before
        with monkeypatch.context() as patch:
            break_for(patch, at, name)
            table, said_now = await akocore_get(house, kind)
            wide, _ = await akocore_get(house, kind, "-o", "wide")
        row = [line for line in table.splitlines() if "InternalError" in line]
        assert len(row) == 1, table
        assert name in row[0]
        assert name in said_now
        assert "RuntimeError at test_faults.py" in said_now
        assert len(table.splitlines()) >= 3, (kind, before)
        assert len(wide.splitlines()) == len(table.splitlines())
        again, _ = await akocore_get(house, kind)
        assert "InternalError" not in again
