"""The Helm chart says what the code says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml

from akocore import __version__
from akocore.cli.install import chart_files
from akocore.config import Config, load_config
from akocore.kube.chart_values import values_schema

CHART = Path(__file__).parents[2] / "deploy" / "chart"
PROGRAMS = Path.home() / ".cache" / "akocore" / "programs"


@pytest.mark.parametrize("name", ["crds.yaml", "rules.yaml"])
def test_definitions_and_rules_are_those_of_the_code(name: str) -> None:
    """`make chart` writes them anew."""
    assert (CHART / "files" / name).read_text() == chart_files()[name]


def test_what_its_values_may_be_is_what_the_code_takes() -> None:
    """`make chart` writes it anew."""
    text = (CHART / "values.schema.json").read_text()
    assert text == values_schema(text)


def render(tmp_path: Path, values: str) -> tuple[str, Config | None]:
    """What Helm says against ``values``, or the configuration that controllers get of them."""
    helm = shutil.which("helm") or str(PROGRAMS / "helm")
    if not Path(helm).exists():
        pytest.skip("no helm here: `make test-cluster` builds one")
    file = tmp_path / "values.yaml"
    file.write_text(values)
    command = [helm, "template", "akocore", str(CHART), "--kube-version", "1.31", "-f", str(file)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        return made.stderr, None
    maps = [one for one in yaml.safe_load_all(made.stdout) if one and one["kind"] == "ConfigMap"]
    file.write_text(maps[0]["data"]["config.yaml"])
    return "", load_config(file)


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ("watchNamespace: [shop]", "'watchNamespace'"),
        ("limits: {hosts: 5}", "'limits'"),
        ("L7Settings: {fqdnReusePolic: Strict}", "'fqdnReusePolic'"),
        ("controller: {limits: {host: 5}}", "'host'"),
        ("controller: {limits: {hops: 1}}", "/controller/limits/hops"),
        ("clientLimits: {connections: 0}", "/clientLimits/connections"),
        ("networks: {a: {subnet: 10.0.0.0/24, vipPerNamespace: 2}}", "'vipPerNamespace'"),
        ("networks: {a: {subnet: 10.0.0.0/24, vipsPerNamespace: -1}}", "/networks/a/vipsPer"),
        ("serviceEngineGroups: {g: {minSePerV: 2}}", "'minSePerV'"),
        ("endpoints: {deny: [abc]}", "/endpoints/deny/0"),
        ("controller: {moveGraceSeconds: 99999}", "/controller/moveGraceSeconds"),
    ],
)
def test_a_value_that_is_misspelt_or_out_of_bounds_is_an_error_of_helm(
    tmp_path: Path, values: str, where: str
) -> None:
    said, config = render(tmp_path, values)
    assert config is None
    assert where in said


@pytest.mark.parametrize(
    ("values", "ours"),
    [
        ("{}", True),
        ("L4Settings: {defaultLBController: 'false'}", False),  # as AKO has it
        ("L4Settings: {defaultController: false}", False),  # as this chart had it
        ("AKOSettings: {layer7Only: true}", False),
        ("AKOSettings: {layer7Only: false}", True),
    ],
)
def test_whose_load_balancers_without_a_class_are_is_said_as_ako_says_it(
    tmp_path: Path, values: str, ours: bool
) -> None:
    said, config = render(tmp_path, values)
    assert config is not None, said
    assert config.l4.default_controller is ours


def test_values_taken_out_are_the_defaults_and_akos_others_have_nothing_to_say(
    tmp_path: Path,
) -> None:
    out = "watchNamespaces: null\nendpoints: null\nserviceEngineGroups: null\n"
    ako = (
        "avicredentials: {username: u}\nAKOSettings: {cniPlugin: calico, vipPerNamespace: 'false'}"
    )
    said, config = render(tmp_path, out + ako)
    assert config is not None, said
    assert config.watch_namespaces == config.endpoints.deny == ()


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
