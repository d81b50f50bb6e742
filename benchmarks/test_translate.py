"""Changes → store → translate → place → encode → difference, without engines.

Physical limit: the bytes that come out are written once; measured as half of a copy of them.
"""

import gc
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from akocore.cli.dummy import manifests
from akocore.config import Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import KINDS, Change, decode
from akocore.place.state import State
from akocore.reconcile import Reconciler
from benchmarks.conftest import Measure
from benchmarks.limits import read_s

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def changes(first: int, count: int, port: int = 8080) -> list[Change]:
    """Service, EndpointSlice and Ingress of so many applications."""
    out = []
    for i in range(first, first + count):
        for item in manifests("app", i, endpoint=f"127.0.0.1:{port}"):
            obj = decode(item, KINDS[item["apiVersion"], item["kind"]])
            out.append(Change(item["kind"], obj.key, obj))
    return out


def published(at: Reconciler) -> int:
    return sum(
        len(one.frame)
        for catalog in at.ads.catalogs.values()
        for kind in catalog.resources.values()
        for one in kind.values()
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Any]:
    numbers = itertools.count()
    states = []

    def make() -> Reconciler:
        gc.collect()
        at = tmp_path / str(next(numbers))
        states.append(state := State(at))
        ads = AdsServer(at / "xds.sock", lambda _group: None)
        return Reconciler(Config(), state, ads, now=lambda: MOMENT)

    gc.collect()
    gc.freeze()
    gc.disable()  # as `akocore serve` does while it takes in what is there
    yield make
    gc.enable()
    gc.unfreeze()
    for state in states:
        state.close()


@pytest.mark.benchmark(group="apply-all")
@pytest.mark.parametrize("count", [1_000, 10_000], ids=["1k", "10k"])
def test_all_at_once(measure: Measure, fresh: Any, count: int) -> None:
    batch = changes(0, count)
    sample = fresh()
    sample.apply(batch)
    measure(
        lambda at: at.apply(batch),
        count,
        read_s(published(sample)),
        setup=lambda: ((fresh(),), {}),
    )
    assert len(sample.hosts) == count


@pytest.mark.benchmark(group="apply-one-of-many")
@pytest.mark.parametrize("count", [100, 1_000, 10_000], ids=["100", "1k", "10k"])
def test_one_new_application_among_many(measure: Measure, fresh: Any, count: int) -> None:
    at = fresh()
    at.apply(changes(0, count))
    before = published(at)
    at.apply(changes(count, 1))
    each = published(at) - before
    numbers = itertools.count(count + 1)
    measure(at.apply, 1, read_s(each), setup=lambda: ((changes(next(numbers), 1),), {}), rounds=300)
    assert len(at.hosts) > count


@pytest.mark.benchmark(group="apply-one-of-many")
@pytest.mark.parametrize("count", [100, 10_000], ids=["100", "10k"])
def test_one_endpoint_that_changes_among_many(measure: Measure, fresh: Any, count: int) -> None:
    at = fresh()
    at.apply(changes(0, count))
    ports = itertools.cycle([1111, 2222])
    slices = [[c for c in changes(7, 1, next(ports)) if c.kind == "EndpointSlice"] for _ in "ab"]
    turns = itertools.cycle(slices)
    frame = next(iter(at.ads.catalog("Default-Group").resources.values()))
    size = len(next(iter(frame.values())).frame)
    measure(at.apply, 1, read_s(size), setup=lambda: ((next(turns),), {}), rounds=300)
