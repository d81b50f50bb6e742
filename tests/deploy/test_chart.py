"""The Helm chart says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from akocore import __version__
from akocore.cli.install import chart_files
from akocore.client_limits import ClientLimits
from akocore.config import Config

CHART = Path(__file__).parents[2] / "deploy" / "chart"


@pytest.mark.parametrize("name", ["crds.yaml", "rules.yaml"])
def test_definitions_and_rules_are_those_of_the_code(name: str) -> None:
    """`make chart` writes them anew."""
    assert (CHART / "files" / name).read_text() == chart_files()[name]


def test_its_version_is_the_packages() -> None:
    chart = msgspec.yaml.decode((CHART / "Chart.yaml").read_bytes())
    assert chart["appVersion"] == chart["version"] == __version__


def test_the_default_networks_and_groups_are_a_configuration() -> None:
    values = msgspec.yaml.decode((CHART / "values.yaml").read_bytes())
    made = msgspec.convert(
        {key: values[key] for key in ("networks", "serviceEngineGroups")}, type=Config
    )
    assert values["ControllerSettings"]["serviceEngineGroupName"] in made.service_engine_groups
    assert values["NetworkSettings"]["vipNetworkList"][0]["networkName"] in made.networks


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    """`make docs` lists them."""
    there = set(
        re.findall(r"`(akocore_\w+)`", (CHART.parents[1] / "docs/reference.md").read_text())
    )
    asked = set(re.findall(r"akocore_[a-z_]+", (CHART / "files/dashboard.json").read_text()))
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert bare - {"akocore"} <= there


def test_limits_of_clients_are_those_of_the_configuration() -> None:
    schema = msgspec.json.decode((CHART / "values.schema.json").read_bytes())
    told = schema["properties"]["clientLimits"]["properties"]
    fields = msgspec.json.schema(ClientLimits)["$defs"]["ClientLimits"]["properties"]
    kept = ("type", "minimum", "maximum", "enum")
    assert told == {
        name: {key: field[key] for key in kept if key in field} for name, field in fields.items()
    }
