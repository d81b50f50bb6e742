"""Whatever was edited in whatever order, Gateways are what a clean boot makes of the objects."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.resources import CDS, LDS, SRDS
from akocore.kube import gateway_status
from akocore.kube.gateway_objects import GATEWAY_API
from akocore.kube.objects import KINDS, Change, decode
from akocore.place.state import State
from akocore.reconcile import Reconciler
from akocore.status_gateway import refusals
from e2e.test_tls import pair

Manifest = dict[str, Any]
CHAIN, KEY, _ = pair("a.test")
NOW = datetime.now(UTC)  # when the certificate is good
HOSTS = st.sampled_from(["", "a.test", "b.test", "*.test", "*.a.test"])
NAMESPACES = st.sampled_from(["d", "e"])
CONFIG = msgspec.convert(
    {
        "networks": {
            "default": {
                "subnet": "127.10.15.0/24",
                "vipRanges": [{"begin": "127.10.15.161", "end": "127.10.15.190"}],
            }
        }
    },
    Config,
)


def _manifest(kind: str, name: str, spec: Manifest, namespace: str = "d", **meta: Any) -> Manifest:
    """Each name has an age of its own, so who came first is no matter of chance."""
    version = f"{GATEWAY_API}/v1"
    if kind in ("Service", "Namespace", "Secret", "ConfigMap"):
        version = "v1"
    if kind == "ReferenceGrant":
        version += "beta1"
    cluster = kind in ("GatewayClass", "Namespace")
    stamp = sum(map(ord, f"{kind}{namespace}{name}")) % 1000
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "" if cluster else namespace,
            "creationTimestamp": f"2026-01-01T00:{stamp // 60:02d}:{stamp % 60:02d}Z",
            **meta,
        },
        **({"spec": spec} if spec else {}),
    }


@st.composite
def listeners(draw: st.DrawFn) -> list[Manifest]:
    out = []
    for i in range(draw(st.integers(0, 3))):
        protocol = draw(
            st.sampled_from(["HTTP", "HTTP", "HTTPS", "HTTPS", "TLS", "TCP", "UDP", "SCTP"])
        )
        one: Manifest = {
            "name": f"l{i}",
            "protocol": protocol,
            "port": draw(st.sampled_from([80, 81])),
        }
        if protocol in ("HTTP", "HTTPS", "TLS"):
            one["hostname"] = draw(HOSTS)
        if protocol == "TLS":
            one["tls"] = {"mode": "Passthrough"}
        if protocol == "HTTPS":
            one["tls"] = {"certificateRefs": [{"name": draw(st.sampled_from(["c", "c", "none"]))}]}
        from_ = draw(st.sampled_from(["Same", "All", "Selector"]))
        one["allowedRoutes"] = {"namespaces": {"from": from_}}
        if from_ == "Selector":
            one["allowedRoutes"]["namespaces"]["selector"] = {"matchLabels": {"team": "red"}}
        out.append(one)
    return out


@st.composite
def gateways(draw: st.DrawFn) -> Manifest:
    spec: Manifest = {
        "gatewayClassName": draw(st.sampled_from(["ours", "ours", "ours", "theirs"])),
        "listeners": draw(listeners()),
    }
    if draw(st.booleans()):
        spec["allowedListeners"] = {"namespaces": {"from": draw(st.sampled_from(["All", "Same"]))}}
    return _manifest("Gateway", draw(st.sampled_from(["g", "h"])), spec)


@st.composite
def sets(draw: st.DrawFn) -> Manifest:
    spec = {
        "parentRef": {"name": draw(st.sampled_from(["g", "h"])), "namespace": "d"},
        "listeners": draw(listeners()),
    }
    return _manifest("ListenerSet", draw(st.sampled_from(["s", "t"])), spec, draw(NAMESPACES))


@st.composite
def routes(draw: st.DrawFn) -> Manifest:
    kinds = ["HTTPRoute", "HTTPRoute", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute"]
    kind = draw(st.sampled_from(kinds))
    parent: Manifest = {"name": draw(st.sampled_from(["g", "h"])), "namespace": "d"}
    if draw(st.booleans()):
        parent["sectionName"] = draw(st.sampled_from(["l0", "l1"]))
    if draw(st.integers(0, 3)) == 0:
        parent |= {"kind": "ListenerSet", "name": draw(st.sampled_from(["s", "t"]))}
    to = {"name": draw(st.sampled_from(["x", "y"])), "port": 80, "namespace": draw(NAMESPACES)}
    rule: Manifest = {"backendRefs": [to]}
    if kind == "HTTPRoute":
        value = draw(st.sampled_from(["/", "/a", "/(?=a)"]))
        type_ = "RegularExpression" if "(" in value else "PathPrefix"
        rule["matches"] = [{"path": {"type": type_, "value": value}}]
    spec: Manifest = {"parentRefs": [parent], "rules": [rule]}
    if kind in ("HTTPRoute", "GRPCRoute", "TLSRoute"):
        spec["hostnames"] = [h for h in draw(st.lists(HOSTS, max_size=2, unique=True)) if h]
    return _manifest(kind, draw(st.sampled_from(["r", "q"])), spec, draw(NAMESPACES))


@st.composite
def others(draw: st.DrawFn) -> Manifest:
    match draw(
        st.sampled_from(
            ["class", "namespace", "service", "grant", "secret", "ca", "policy", "policy"]
        )
    ):
        case "class":
            name = draw(st.sampled_from(["ours", "theirs"]))
            controller = "ako.vmware.com/avi-lb" if name == "ours" else "example.com/lb"
            spec: Manifest = {"controllerName": controller}
            if draw(st.integers(0, 3)) == 0:
                ref = {"group": "ako.vmware.com", "kind": "AviInfraSetting", "name": "gone"}
                spec["parametersRef"] = ref
            return _manifest("GatewayClass", name, spec)
        case "namespace":
            labels = {"team": draw(st.sampled_from(["red", "blue"]))}
            return _manifest("Namespace", draw(NAMESPACES), {}, labels=labels)
        case "secret":
            made = _manifest("Secret", "c", {}, draw(NAMESPACES))
            chain = draw(st.sampled_from([CHAIN.decode(), "nonsense"]))
            return {**made, "stringData": {"tls.crt": chain, "tls.key": KEY.decode()}}
        case "ca":
            made = _manifest("ConfigMap", "ca", {})
            return {**made, "data": {"ca.crt": draw(st.sampled_from([CHAIN.decode(), ""]))}}
        case "policy":
            target = {"group": "", "kind": "Service", "name": draw(st.sampled_from(["x", "y"]))}
            if draw(st.booleans()):
                target["sectionName"] = draw(st.sampled_from(["p", "q"]))
            ca = {"group": "", "kind": "ConfigMap", "name": "ca"}
            validation = {"hostname": "inner.test", "caCertificateRefs": [ca]}
            spec = {"targetRefs": [target], "validation": validation}
            return _manifest("BackendTLSPolicy", draw(st.sampled_from(["p", "o"])), spec)
        case "service":
            protocol = draw(st.sampled_from(["TCP", "UDP"]))
            port = {"name": "p", "port": 80, "protocol": protocol}
            if draw(st.booleans()):
                port["appProtocol"] = "kubernetes.io/h2c"
            name = draw(st.sampled_from(["x", "y"]))
            return _manifest("Service", name, {"ports": [port]}, draw(NAMESPACES))
        case _:
            here, there = ("d", "e") if draw(st.booleans()) else ("e", "d")
            spec = {
                "from": [{"group": GATEWAY_API, "kind": "HTTPRoute", "namespace": here}],
                "to": [{"group": "", "kind": "Service"}],
            }
            return _manifest("ReferenceGrant", "grant", spec, there)


_ALL = {"allowedRoutes": {"namespaces": {"from": "All"}}}
FIRST = [
    _manifest("GatewayClass", "ours", {"controllerName": "ako.vmware.com/avi-lb"}),
    _manifest(
        "Gateway",
        "g",
        {
            "gatewayClassName": "ours",
            "listeners": [
                {"name": "l0", "protocol": "HTTP", "port": 80, **_ALL},
                {"name": "l1", "protocol": "HTTP", "port": 80, "hostname": "*.test", **_ALL},
            ],
            "allowedListeners": {"namespaces": {"from": "All"}},
        },
    ),
    *(
        _manifest("Service", n, {"ports": [{"name": "p", "port": 80}]}, s)
        for n in "xy"
        for s in "de"
    ),
]
GONE = st.sampled_from([False] * 6 + [True])
EDITS = st.lists(
    st.tuples(st.one_of(gateways(), routes(), routes(), sets(), others()), GONE),
    min_size=8,
    max_size=30,
)


def _change(manifest: Manifest, gone: bool) -> Change:
    struct = KINDS[manifest["apiVersion"], manifest["kind"]]
    obj = decode(manifest, struct)
    return Change(struct.stored(), obj.key, None if gone else obj)


def _world(at: Reconciler) -> dict[str, Any]:
    """What translation has made of the objects; who got which address is a matter of history."""
    said = {
        f"{kind}/{key}": sorted(
            (r.field, r.reason, r.remedy) for r in refusals(at, kind, key) or ()
        )
        for kind in gateway_status.KINDS
        for key in at.store.all(kind)
    }
    status = {
        f"{kind}/{key}": _timeless(gateway_status.wanted(at, obj, lambda _vs: None))
        for kind in gateway_status.KINDS
        for key, obj in at.store.all(kind).items()
    }
    return {"said": said, "status": status, "placed": _placed(at), "published": _published(at)}


def _timeless(status: dict[str, Any] | None) -> Any:
    if status is not None:
        status.pop("addresses", None)
    return status


def _placed(at: Reconciler) -> dict[str, Any]:
    return {
        name: {
            "hosts": {at: placed.model for at, placed in one.gateway.hosts.items()},
            "ports": {at: placed.model for at, placed in one.gateway.ports.items()},
            "floors": {at: placed.wildcards for at, placed in one.gateway.floors.items()},
        }
        for name, one in at.placement.services.items()
        if one.gateway is not None
    }


def _published(at: Reconciler) -> dict[str, list[str]]:
    """Names of what the engines are to have; of listeners without their addresses."""
    out: dict[str, list[str]] = {}
    for group, catalog in at.ads.catalogs.items():
        for type_url in (CDS, LDS, SRDS):
            for name in catalog.resources[type_url]:
                plain = (
                    name if type_url != LDS else name.partition("/")[0] + name.rpartition(":")[2]
                )
                out.setdefault(f"{group} {type_url}", []).append(plain)
    return {name: sorted(found) for name, found in out.items()}


def _boot(scratch: Path) -> Reconciler:
    ads = AdsServer(scratch / "xds.sock", lambda _group: None)
    return Reconciler(CONFIG, State(scratch), ads, now=lambda: NOW)


@settings(deadline=None, max_examples=60)
@given(EDITS, st.integers(1, 5))
def test_any_history_ends_as_a_clean_boot_does(
    edits: list[tuple[Manifest, bool]], batch: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        lived = _boot(Path(scratch) / "lived")
        changes = [_change(one, False) for one in FIRST] + [_change(*edit) for edit in edits]
        for i in range(0, len(changes), batch):
            lived.apply(changes[i : i + batch])
        last = {(one.kind, one.key): one for one in changes}
        booted = _boot(Path(scratch) / "booted")
        booted.apply([one for one in last.values() if one.obj is not None])
        assert _world(lived) == _world(booted)
        lived.apply([Change(kind, key, None) for kind, key in last])
        assert not lived.gateway_api.gateways
        assert not lived.gateway_api.routes
        assert not lived.gateway_api.named
        assert not any(_published(lived).values())


def test_routes_of_two_kinds_no_longer_compete_when_their_gateway_is_served_no_more(
    tmp_path: Path,
) -> None:
    listener = {"name": "l0", "protocol": "HTTP", "port": 80, **_ALL}
    spec = {"gatewayClassName": "ours", "listeners": [listener]}
    gateway = _manifest("Gateway", "h", spec)
    to: Manifest = {
        "parentRefs": [{"name": "h"}],
        "rules": [{"backendRefs": [{"name": "x", "port": 80}]}],
    }
    routes = [_manifest("GRPCRoute", "r", to), _manifest("HTTPRoute", "r", to)]
    ref = {"group": "ako.vmware.com", "kind": "AviInfraSetting", "name": "gone"}
    spec = {"controllerName": "ako.vmware.com/avi-lb", "parametersRef": ref}
    refused = _manifest("GatewayClass", "ours", spec)
    changes = [_change(one, False) for one in (*FIRST, gateway, *routes, refused)]
    lived, booted = _boot(tmp_path / "lived"), _boot(tmp_path / "booted")
    for one in changes[:-1]:
        lived.apply([one])
    assert [r.reason for r in refusals(lived, "HTTPRoute", "d/r") or ()] == ["HostnameConflict"]
    lived.apply(changes[-1:])
    booted.apply(list({(one.kind, one.key): one for one in changes}.values()))
    assert _world(lived)["said"] == _world(booted)["said"]
    assert not refusals(lived, "HTTPRoute", "d/r")
