"""What a user writes wrong is refused by the API server, where a schema can."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.control_plane import ControlPlane

pytestmark = pytest.mark.real

_ALPHA = "v1alpha1"
GOOD: dict[str, dict[str, Any]] = {
    "Network": {
        "apiVersion": f"akocore.io/{_ALPHA}",
        "spec": {"subnet": "10.10.16.0/24"},
    },
    "GatewayClass": {
        "apiVersion": f"networking.x-k8s.io/{_ALPHA}",
        "spec": {"controller": "ako.vmware.com/avi-lb"},
    },
    "Gateway": {
        "apiVersion": f"networking.x-k8s.io/{_ALPHA}",
        "spec": {"gatewayClassName": "avi-lb"},
    },
    "ServiceEngineGroup": {"apiVersion": f"akocore.io/{_ALPHA}"},  # all of it has a default
    "AviInfraSetting": {"apiVersion": f"ako.vmware.com/{_ALPHA}"},
}


def refusal(plane: ControlPlane, kind: str, body: dict[str, Any]) -> str:
    made = orjson.dumps(body | {"kind": kind, "metadata": {"name": "one"}})
    try:
        plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=made)
    except RuntimeError as err:
        return str(err)
    return ""


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_whole_is_taken(plane: ControlPlane, kind: str) -> None:
    assert refusal(plane, kind, GOOD[kind]) == ""


@pytest.mark.parametrize("kind", [kind for kind, body in GOOD.items() if "spec" in body])
def test_an_object_without_its_spec_is_refused(plane: ControlPlane, kind: str) -> None:
    assert "spec: Required value" in refusal(plane, kind, GOOD[kind] | {"spec": None})
    without = {key: value for key, value in GOOD[kind].items() if key != "spec"}
    assert "spec: Required value" in refusal(plane, kind, without)
