"""Model → bytes for Envoy: a cluster and a scope a host.

Physical limit: the bytes are written once; measured as half of a copy of them.
"""

import pytest

from akocore.engines.envoy.resources import Encoded, cluster, scope
from akocore.model import HostModel, Pool, Route
from benchmarks.conftest import Measure
from benchmarks.limits import read_s

COUNT = 10_000


def clusters() -> list[Encoded]:
    return [cluster(f"default/app{i}/80", [("10.0.0.1", 8080)]) for i in range(COUNT)]


def models() -> list[HostModel]:
    return [
        HostModel(
            host := f"app{i}.apps.example.test",
            "",
            (Route("", False, Pool(f"my-cluster--{host}_-default-app{i}", f"default/app{i}/80")),),
            "",
            False,
        )
        for i in range(COUNT)
    ]


def size(encoded: list[Encoded]) -> int:
    return sum(len(one.frame) for one in encoded)


@pytest.mark.benchmark(group="encode-10k")
def test_clusters(measure: Measure) -> None:
    measure(clusters, COUNT, read_s(size(clusters())))


@pytest.mark.benchmark(group="encode-10k")
def test_scopes(measure: Measure) -> None:
    hosts = models()

    def scopes() -> list[Encoded]:
        return [scope("my-cluster--Shared-L7-0", 80, model) for model in hosts]

    measure(scopes, COUNT, read_s(size(scopes())))
