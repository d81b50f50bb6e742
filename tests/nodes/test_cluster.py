"""The cluster that the other tests here stand on is a true one."""

from __future__ import annotations

import pytest

from nodes.cluster import Nodes
from nodes.workloads import backend

pytestmark = [pytest.mark.slow, pytest.mark.real]


def test_a_pod_answers_at_its_service_by_name_and_by_address(nodes: Nodes) -> None:
    nodes.apply(*backend("plain", replicas=2))
    nodes.kubectl("rollout", "status", "deploy/plain", "--timeout=60s")
    address = nodes.get("service", "plain")["spec"]["clusterIP"]
    assert '"host":"plain"' in nodes.ask(address, "plain")
    nodes.kubectl("delete", "deploy,service", "plain")
