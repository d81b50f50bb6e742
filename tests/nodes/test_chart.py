"""The chart's values, by the real Helm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from akocore.config import Config
from nodes.cluster import Nodes
from nodes.site import CHART

pytestmark = [pytest.mark.slow, pytest.mark.real]

_AKOS = Path(__file__).with_name("ako-values.yaml")


def config_of(nodes: Nodes, *arguments: str) -> Config:
    """The configuration that controllers of such a release have."""
    show = ("--show-only", "templates/config.yaml", "--kube-version", "1.35.0")
    made = msgspec.yaml.decode(nodes.helm("template", "akocore", str(CHART), *show, *arguments))
    return msgspec.yaml.decode(made["data"]["config.yaml"], type=Config)


def test_values_of_ako_are_understood(nodes: Nodes) -> None:
    found = config_of(nodes, "--values", str(_AKOS))
    assert found.cluster_name == "my-cluster"
    assert found.defaults.network == "REGA_EXT_UPLINKB_3014"
    assert found.defaults.se_group == "Default-Group"
    assert found.defaults.shard_size == "LARGE"
    assert found.defaults.enable_rhi is False


def test_the_default_values_are_a_configuration(nodes: Nodes) -> None:
    found = config_of(nodes)
    assert found.defaults.network in found.networks
    assert found.defaults.se_group in found.service_engine_groups


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("blockedNamespaceList={kube-system}", "blockedNamespaceList keeps namespaces out"),
        ("namespaceSelector.labelKey=team", "namespaceSelector chooses namespaces"),
    ],
)
def test_values_of_ako_that_mean_less_access_are_refused(
    nodes: Nodes, value: str, says: str
) -> None:
    with pytest.raises(RuntimeError, match=f"{says} and is not served"):
        config_of(nodes, "--set", f"AKOSettings.{value}")


def test_chosen_namespaces_are_served_by_roles_in_them(nodes: Nodes) -> None:
    chosen = ("--set", "watchNamespaces={shop,blog}")
    assert config_of(nodes, *chosen).watch_namespaces == ("shop", "blog")
    show = ("--show-only", "templates/access.yaml", "--kube-version", "1.35.0")
    made = nodes.helm("template", "akocore", str(CHART), *show, *chosen)
    roles = [msgspec.yaml.decode(one) for one in made.split("\n---\n")]
    reads = {
        (role["kind"], role["metadata"].get("namespace"))
        for role in roles
        for rule in role.get("rules") or ()
        if "secrets" in rule["resources"] and "watch" in rule["verbs"]
    }
    assert reads == {("Role", "shop"), ("Role", "blog"), ("Role", None)}  # None: its own


def policy_of(nodes: Nodes, *arguments: str) -> dict[str, list[Any]]:
    """Who may connect to the controllers, by port; none: anybody."""
    show = ("--show-only", "templates/services.yaml", "--kube-version", "1.35.0")
    made = nodes.helm("template", "akocore", str(CHART), *show, *arguments)
    objects = [msgspec.yaml.decode(one) for one in made.split("\n---\n")]
    (policy,) = (one for one in objects if one["kind"] == "NetworkPolicy")
    return {
        port["port"]: rule.get("from", [])
        for rule in policy["spec"]["ingress"]
        for port in rule["ports"]
    }


def test_who_may_connect_to_controllers_is_chosen(nodes: Nodes) -> None:
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    found = policy_of(nodes)
    assert found == {
        "xds": [],
        "certificates": [],
        "metrics": [{"namespaceSelector": monitoring}],
    }
    chosen = policy_of(
        nodes,
        *("--set", "networkPolicy.nodes={10.1.0.0/16,10.2.0.0/16}"),
        *("--set", "networkPolicy.monitoring=null"),
    )
    assert chosen.keys() == {"xds", "certificates"}
    for allowed in chosen.values():
        blocks = [one["ipBlock"]["cidr"] for one in allowed if "ipBlock" in one]
        pods = [one["podSelector"]["matchLabels"] for one in allowed if "podSelector" in one]
        assert blocks == ["10.1.0.0/16", "10.2.0.0/16"]
        assert [one["app.kubernetes.io/component"] for one in pods] == ["service-engine"]


def test_a_value_that_means_nothing_is_refused_with_those_that_do(nodes: Nodes) -> None:
    with pytest.raises(RuntimeError, match="'LARGE', 'MEDIUM', 'SMALL', 'DEDICATED'"):
        config_of(nodes, "--set", "L7Settings.shardVSSize=HUGE")
