"""Whatever was edited in whatever order, L4 is what a clean boot makes of the same objects."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import KINDS, AddressRange, Change, NetworkSpec, decode
from akocore.place.state import State
from akocore.reconcile import Reconciler
from akocore.status_l4 import refusals
from akocore.translate.services import (
    ADDRESS_ANNOTATION,
    GATEWAY_NAME,
    GATEWAY_NAMESPACE,
    SHARED_ANNOTATION,
)

SETTING = "aviinfrasetting.ako.vmware.com/name"
PORTS = st.sampled_from([("TCP", 80), ("UDP", 80), ("TCP", 81)])
SETTINGS = st.sampled_from(["gold", "bad", "none"])
ADDRESSES = st.sampled_from(
    ["127.10.15.170", "127.10.15.171", "127.10.99.1", "fd00::170", "nonsense"]
)
FAMILIES = st.sampled_from([[], ["IPv4"], ["IPv6"], ["IPv4", "IPv6"]])
POLICIES = st.sampled_from(["", "SingleStack", "PreferDualStack", "RequireDualStack"])
SIX = NetworkSpec(
    subnet="fd00::/64", vip_ranges=(AddressRange(begin="fd00::161", end="fd00::180"),)
)
CONFIG = Config(networks={**Config().networks, "six": SIX})
Manifest = dict[str, Any]


def _manifest(version: str, kind: str, name: str, spec: Manifest, **meta: Any) -> Manifest:
    """Each name has an age of its own, so who came first is no matter of chance."""
    namespaced = KINDS[version, kind].NAMESPACED
    age = f"2026-01-01T00:00:{len(name) * 7 + ord(name[-1]) % 7:02d}Z"
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "d" if namespaced else "",
            "creationTimestamp": age,
            **meta,
        },
        "spec": spec,
    }


@st.composite
def gateways(draw: st.DrawFn) -> Manifest:
    name = draw(st.sampled_from(["gw1", "gw2"]))
    labels = {GATEWAY_NAMESPACE: "d", GATEWAY_NAME: draw(st.sampled_from([name, name, "gw2"]))}
    spec: Manifest = {
        "gatewayClassName": draw(st.sampled_from(["ours", "ours", "theirs", "none"])),
        "listeners": [
            {"protocol": p, "port": n, "routes": {"selector": {"matchLabels": labels}}}
            for p, n in draw(st.lists(PORTS, max_size=3))
        ],
    }
    if draw(st.booleans()):
        spec["addresses"] = [{"value": draw(ADDRESSES)}]
    return _manifest("networking.x-k8s.io/v1alpha1", "Gateway", name, spec)


@st.composite
def services(draw: st.DrawFn) -> Manifest:
    ports = draw(st.lists(PORTS, min_size=1, max_size=3, unique=True))
    meta: Manifest = {"labels": {}, "annotations": {}}
    match draw(st.sampled_from(["own", "gateway", "shared", "half"])):
        case "gateway":
            meta["labels"] = {
                GATEWAY_NAMESPACE: "d",
                GATEWAY_NAME: draw(st.sampled_from(["gw1", "gw2", "gw3"])),
            }
        case "shared":
            meta["annotations"][SHARED_ANNOTATION] = draw(st.sampled_from(["k1", "k2"]))
        case "half":
            meta["labels"] = {GATEWAY_NAME: "gw1"}
    if draw(st.booleans()):
        meta["annotations"][SETTING] = draw(SETTINGS)
    if draw(st.booleans()):
        meta["annotations"][ADDRESS_ANNOTATION] = draw(ADDRESSES)
    spec = {
        "type": draw(st.sampled_from(["LoadBalancer", "LoadBalancer", "ClusterIP"])),
        "ports": [{"name": f"{p.lower()}{n}", "protocol": p, "port": n} for p, n in ports],
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
        "ipFamilies": draw(FAMILIES),
        "ipFamilyPolicy": draw(POLICIES),
    }
    return _manifest("v1", "Service", draw(st.sampled_from("abcd")) * 2, spec, **meta)


@st.composite
def others(draw: st.DrawFn) -> Manifest:
    match draw(st.sampled_from(["class", "setting", "namespace"])):
        case "class":
            name = draw(st.sampled_from(["ours", "theirs"]))
            ref = {
                "group": "ako.vmware.com",
                "kind": draw(st.sampled_from(["AviInfraSetting"] * 3 + ["X"])),
            }
            spec: Manifest = {
                "controller": "ako.vmware.com/avi-lb" if name == "ours" else "example.com/lb"
            }
            if draw(st.booleans()):
                spec["parametersRef"] = {**ref, "name": draw(SETTINGS)}
            return _manifest("networking.x-k8s.io/v1alpha1", "GatewayClass", name, spec)
        case "setting":
            name = draw(st.sampled_from(["gold", "bad"]))
            names = draw(st.sampled_from([[], ["default"], ["default", "six"], ["six", "default"]]))
            spec = {"network": {"names": names}}
            if name == "bad":
                spec["seGroup"] = {"name": "nobody"}
            return _manifest("ako.vmware.com/v1beta1", "AviInfraSetting", name, spec)
        case _:
            annotations = {SETTING: draw(SETTINGS)} if draw(st.booleans()) else {}
            made = _manifest("v1", "Namespace", "d", {}, annotations=annotations)
            del made["spec"]
            return made


GONE = st.sampled_from([False, False, False, True])
EDITS = st.lists(
    st.tuples(st.one_of(gateways(), services(), others()), GONE), min_size=8, max_size=30
)


def _change(manifest: Manifest, gone: bool) -> Change:
    struct = KINDS[manifest["apiVersion"], manifest["kind"]]
    obj = decode(manifest, struct)
    return Change(struct.KIND, obj.key, None if gone else obj)


def _world(at: Reconciler) -> dict[str, Any]:
    """What translation has made of the objects; who got which address is a matter of history."""
    l4 = at.l4
    history = {"AddressTaken", "AddressContended"}
    said = {
        f"{kind}/{key}": sorted(
            (r.field, r.reason, r.remedy.partition(" Until")[0])
            for r in refusals(at, kind, key) or ()
            if r.reason not in history
        )
        for kind in ("GatewayClass", "Gateway", "Service")
        for key in at.store.all(kind)
    }
    listeners = {
        name: {at: placed.model for at, placed in (one.listeners or {}).items()}
        for name, one in at.placement.services.items()
    }
    clusters = {
        name
        for catalog in at.ads.catalogs.values()
        for type_url, resources in catalog.resources.items()
        if type_url.endswith("Cluster")
        for name in resources
    }
    kept = (l4._behind, l4._on, l4._refers, l4._owners, l4._refused, l4._refused_at)
    return {
        "fronts": dict(l4.fronts),
        "said": {key: value for key, value in said.items() if value},
        "listeners": listeners,
        "claims": {key: set(value) for key, value in l4._claims.items()},
        "indexes": [dict(one) for one in kept],  # type: ignore[call-overload]
        "clusters of served": clusters,
    }


def _reconciler(directory: Path) -> tuple[Reconciler, State]:
    state = State(directory)
    ads = AdsServer(directory / "xds.sock", lambda _group: None)
    return Reconciler(CONFIG, state, ads, now=lambda: datetime(2026, 1, 1, tzinfo=UTC)), state


@settings(max_examples=150, deadline=None)
@given(EDITS)
def test_any_edits_end_as_a_clean_boot_would(edits: list[tuple[Manifest, bool]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        edited, first = _reconciler(Path(scratch) / "edited")
        clean, second = _reconciler(Path(scratch) / "clean")
        try:
            left: dict[tuple[str, str], Change] = {}
            for manifest, gone in edits:
                change = _change(manifest, gone)
                edited.apply([change])
                left[change.kind, change.key] = change
            changes = [change for change in left.values() if change.obj is not None]
            clean.apply(changes)
            one, other = _world(edited), _world(clean)
            # An address that is another's, or outside, leaves a front where history put it.
            if any("170" in a or "171" in a or "99" in a or "non" in a for a in one["claims"]):
                for name in ("clusters of served", "said"):
                    del one[name], other[name]
            assert one == other
        finally:
            first.close()
            second.close()
