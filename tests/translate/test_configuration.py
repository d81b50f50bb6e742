"""The configuration file: whatever is wrong in it, the field and what to do are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from akocore.config import Config, ConfigError, load_config


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return load_config(file)


@pytest.mark.parametrize("text", ["", "# nothing is set\n", "---\n"])
def test_a_file_that_sets_nothing_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limits: {hosts: -1}", "Correct limits.hosts: expected `int` >= 1."),
        ("limits: {host: 1}", "unknown field `host`"),
        (
            "networks: {a: {subnet: 10.0.0.0/24, vipPerNamespace: 2}}",
            "networks.a.vipPerNamespace, so it has no effect. Write vipsPerNamespace.",
        ),
        (
            "networks: {a: {subnet: 10.0.0.0/24, vipRanges: [{begin: 1, start: 2, end: 3}]}}",
            "Correct networks.a.vipRanges[0].begin",
        ),
        (
            "serviceEngineGroups: {g: {pods: {drain: 5}}}",
            "There is no field serviceEngineGroups.g.pods.drain, so it has no effect.",
        ),
        (
            "l7: {fqdnReusePolicy: strict}",
            "l7.fqdnReusePolicy: invalid enum value 'strict'. It may be InterNamespaceAllowed or",
        ),
        (
            "defaults: {clientLimits: {underscores: drop}}",
            "clientLimits.underscores: invalid enum value 'drop'. It may be Allow, Drop or Reject.",
        ),
        ('watchNamespaces: [""]', "watchNamespaces[0]"),
        ("watchNamespaces: ['*']", "watchNamespaces[0]"),
        ("watchNamespaces: [shop, blog, shop]", "watchNamespaces has shop twice"),
        ("endpoints: {deny: [10.0.0.1/24]}", "host bits set (write it as 10.10.16.0/24)"),
        ("endpoints: {deny: ['::ffff:10.0.0.0/120']}", "write these as IPv4"),
        ("endpoints: {allow: ['::ffff:10.0.0.5']}", "write these as IPv4"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert said in str(refused.value)
    assert "config.yaml: " in str(refused.value)


def test_networks_of_one_family_alone_may_be_all_of_it(tmp_path: Path) -> None:
    found = load(tmp_path, "endpoints: {deny: ['::/0', 0.0.0.0/0], allow: [10.0.0.5]}")
    assert found.endpoints.allow == ("10.0.0.5",)
