"""``akocore migrate ingress`` over files."""

from __future__ import annotations

from pathlib import Path

import yaml
from typer.testing import CliRunner

from akocore.cli import app

GOLDEN = Path(__file__).parents[1] / "translate" / "golden_migration"


def _file(directory: Path, case: str) -> Path:
    path = directory / f"{case}.yaml"
    path.write_text(yaml.safe_dump_all(yaml.safe_load((GOLDEN / path.name).read_text())["in"]))
    return path


def test_the_manifests_are_yaml_and_the_verdicts_comments_above_them(tmp_path: Path) -> None:
    path = _file(tmp_path, "nginx-filters")
    done = CliRunner().invoke(app(), ["migrate", "ingress", str(path)])
    assert done.exit_code == 0
    wanted = yaml.safe_load((GOLDEN / path.name).read_text())["out"]
    assert list(yaml.safe_load_all(done.stdout)) == wanted["manifests"]
    comments = [line for line in done.stdout.splitlines() if line.startswith("# ")]
    assert comments == [f"# {one}" for one in wanted["verdicts"]]
    assert done.stderr.startswith("1 Gateways, 1 HTTPRoutes;")


def test_a_directory_is_read_whole_and_strict_fails_for_what_is_lost(tmp_path: Path) -> None:
    _file(tmp_path, "nginx-canaries")
    args = ["migrate", "ingress", str(tmp_path), "--strict"]
    assert CliRunner().invoke(app(), args).exit_code == 0
    _file(tmp_path, "nginx-filters")
    assert CliRunner().invoke(app(), args).exit_code == 1


def test_a_class_that_is_not_asked_for_is_left_alone(tmp_path: Path) -> None:
    path = _file(tmp_path, "nginx-filters")
    done = CliRunner().invoke(app(), ["migrate", "ingress", str(path), "--class", "avi-lb"])
    assert list(yaml.safe_load_all(done.stdout)) == []
    assert "# ignored: Ingress/shop/api spec.ingressClassName:" in done.stdout


def test_a_file_that_is_not_there_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(app(), ["migrate", "ingress", str(tmp_path / "no.yaml")])
    assert done.exit_code == 1
    assert "No such file" in done.stderr
