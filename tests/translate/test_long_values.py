"""Values of any length in every field of every golden case: what is said of them is short."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from akocore import status, status_gateway, status_l4
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import KINDS, Change, decode
from akocore.model import Refusal
from akocore.place.state import State
from akocore.reconcile import Reconciler
from akocore.shown import LONGEST
from translate.test_golden import Case

HERE = Path(__file__).parent
CASES = sorted(
    path for name in ("", "_l4", "_gateway") for path in (HERE / f"golden{name}").glob("*.yaml")
)
WORD = "q" * 3_000
WORDS = "long value " * 300
MOST = 500  # letters of a sentence
# Names of objects have 253 letters at most where an API server keeps them.
NAMES = {"name", "namespace", "secretName", "ingressClassName", "gatewayClassName", "sectionName"}
NAMES |= {"networkName", "names"}


def _texts(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where texts are that somebody chose; names of objects are bounded by who stores them."""
    if isinstance(value, str):
        yield at
    for key, one in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        if at == () and key in ("apiVersion", "kind"):
            continue
        if at == ("metadata",) and key != "annotations":
            continue
        yield from _texts(one, (*at, key))


def _with(value: Any, at: tuple[Any, ...], text: str) -> Any:
    out = copy.deepcopy(value)
    inner = out
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = text
    return out


def _said(at: Reconciler) -> Iterator[Refusal]:
    """All that is refused of anything."""
    for key in at.store.all("Ingress"):
        yield from status.ingress_refusals(at, key)
    for kind, key in at.l4.touched:
        yield from status_l4.refusals(at, kind, key) or ()
    for kind, key in at.gateway_api.touched:
        yield from status_gateway.refusals(at, kind, key) or ()
    infrastructure = at.infrastructure
    for found in (infrastructure.setting_refusals, infrastructure.network_refusals):
        for refusals in found.values():
            yield from refusals


def _change(manifest: dict[str, Any]) -> Change | None:
    struct = KINDS[manifest["apiVersion"], manifest["kind"]]
    document = {k: v for k, v in manifest.items() if k not in ("apiVersion", "kind")}
    if struct.NAMESPACED:
        document["metadata"] = {"namespace": "default"} | document["metadata"]
    try:
        obj = decode(document, struct)
    except msgspec.ValidationError:  # the API server would not take it
        return None
    return Change(struct.stored(), obj.key, obj)


@pytest.mark.parametrize("case", CASES, ids=[f"{c.parent.name}-{c.stem}" for c in CASES])
def test_what_is_said_of_a_long_value_is_short(
    case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = msgspec.convert(yaml.safe_load(case.read_text()), Case)
    state = State(tmp_path)
    ads = AdsServer(tmp_path / "xds.sock", lambda _group: None)
    at = Reconciler(found.config, state, ads, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    good = [change for one in found.manifests if (change := _change(one)) is not None]
    at.apply(good)
    caplog.set_level(logging.INFO)
    for number, manifest in enumerate(found.manifests):
        for path in _texts(manifest):
            for value in (WORD, WORDS):
                change = _change(_with(manifest, path, value))
                if change is None:
                    continue
                at.apply([change])
                for said in _said(at):
                    for text in (said.object, said.field, said.remedy):
                        assert len(text) <= MOST, (path, text)
                        if not NAMES & {*path[-2:]}:
                            assert value[: LONGEST + 20] not in text, (number, path, text)
            if (before := _change(manifest)) is not None:
                at.apply([before])
    for record in caplog.records:
        assert len(record.getMessage()) < 2 * MOST
    state.close()
