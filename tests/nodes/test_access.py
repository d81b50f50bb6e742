"""What akocore may do, as the API server sees it, is what docs/access.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodes.site import HOME, Site

pytestmark = [pytest.mark.slow, pytest.mark.real]

ACCESS = Path(__file__).parents[2] / "docs" / "access.md"
_ACCOUNT = f"system:serviceaccount:{HOME}:akocore"


def printed(site: Site, namespace: str, but: str = "") -> str:
    """The command and what it prints, without rows of ``but``; its rows come in no order."""
    words = ("auth", "can-i", "--list", f"--as={_ACCOUNT}", "-n", namespace)
    head, *rows = site.nodes.kubectl(*words).rstrip().splitlines()
    rows = [re.sub(r" +$", "", row) for row in (head, *sorted({*rows}))]
    before = but.splitlines()[2:]
    return "\n".join([f"$ kubectl {' '.join(words)}", *(r for r in rows if r not in before)])


def asserted(name: str, text: str, update: bool) -> None:
    """Whether the block of that name is ``text``."""
    block = re.compile(rf"(<!-- {name} -->\n```console\n)(.*?)(\n```\n)", re.DOTALL)
    docs = ACCESS.read_text()
    found = block.search(docs)
    assert found, f"{ACCESS} has no block {name}"
    if update:
        ACCESS.write_text(block.sub(lambda m: f"{m[1]}{text}{m[3]}", docs))
    else:
        assert found[2] == text


def test_the_controller_may_do_what_is_printed_and_no_more(
    site: Site, request: pytest.FixtureRequest
) -> None:
    update = bool(request.config.getoption("--update-golden"))
    everywhere = printed(site, "default")
    asserted("everywhere", everywhere, update)
    asserted("at-home", printed(site, HOME, everywhere), update)


def test_pods_are_restricted_but_for_what_is_printed(
    site: Site, request: pytest.FixtureRequest
) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    words = ("label", "--dry-run=server", "--overwrite", "namespace", HOME, label)
    said = [  # of pods that are alike it names one
        re.sub(r"^(se-group-\S+)-\d+( \(and .*\))?:", r"\1-N:", one)
        for one in site.nodes.warnings(*words)
    ]
    text = "\n".join([f"$ kubectl {' '.join(words)}", *(f"Warning: {one}" for one in said)])
    asserted("pod-security", text, bool(request.config.getoption("--update-golden")))
    assert "akocore-" not in text.replace(HOME, "")  # not a word of the controllers

    for pod in site.pods("service-engine"):
        assert pod["spec"]["automountServiceAccountToken"] is False
