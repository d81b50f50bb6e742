"""With the controller's token one can make Service Engines, and nothing else, at an API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import orjson
import pytest

from akocore.kube.admission import admission_policy
from akocore.kube.objects import ServiceEngineGroupSpec
from akocore.kube.workloads import Image, stateful_set
from cluster.control_plane import ControlPlane

pytestmark = pytest.mark.real

HOME = "akocore-system"
IMAGE = "registry.example/akocore/service-engine:1"
ACCOUNT = f"--as=system:serviceaccount:{HOME}:akocore"
Edit = Callable[[dict[str, Any]], object]


def _engines() -> dict[str, Any]:
    image = Image(IMAGE, "IfNotPresent", "akocore-xds:18000", "akocore-xds:18001")
    return stateful_set("Default-Group", ServiceEngineGroupSpec(), 2, image)


def _pod(made: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = made["spec"]["template"]["spec"]
    return pod


def _main(made: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = _pod(made)["containers"][0]
    return container


_HOST = {"name": "host", "hostPath": {"path": "/"}}
_TOKEN = {"serviceAccountToken": {"path": "token"}}
_OURS = {"serviceAccountToken": {"path": "token", "audience": "akocore-xds"}}
_OTHERS = {"path": "token", "audience": "https://kubernetes.default.svc"}
_MORE = {"secret": {"name": "akocore-xds-ca"}}
_PROBE = {"exec": {"command": ["sh"]}}
EDITS: dict[str, Edit] = {
    "another image": lambda m: _main(m).update(image="registry.example/other:1"),
    "another command": lambda m: _main(m).update(command=["sh"]),
    "other words of akocore": lambda m: _main(m).update(args=["controller", "--engines=local"]),
    "a container beside it": lambda m: _pod(m)["containers"].append(
        {"name": "more", "image": IMAGE}
    ),
    "one before it": lambda m: _pod(m).update(initContainers=[{"name": "more", "image": IMAGE}]),
    "more privileges than it begins with": lambda m: _main(m)["securityContext"].update(
        allowPrivilegeEscalation=True
    ),
    "one capability more": lambda m: _main(m)["securityContext"]["capabilities"]["add"].append(
        "SYS_ADMIN"
    ),
    "the node's files": lambda m: _pod(m)["volumes"].append(_HOST),
    "a Secret of somebody": lambda m: _pod(m)["volumes"].append(
        {"name": "s", "secret": {"secretName": "akocore-authority"}}
    ),
    "a token in a volume": lambda m: _pod(m)["volumes"].append(
        {"name": "t", "projected": {"sources": [_TOKEN]}}
    ),
    "a token for others": lambda m: _pod(m)["volumes"].append(
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": _OTHERS}]}}
    ),
    "something beside its own token": lambda m: _pod(m)["volumes"].append(
        {"name": "t", "projected": {"sources": [_OURS, _MORE]}}
    ),
    "the authority's key": lambda m: _pod(m)["volumes"].append(
        {"name": "s", "secret": {"secretName": "akocore-xds-ca"}}
    ),
    "keys of the group": lambda m: _pod(m)["volumes"].append(
        {"name": "s", "secret": {"secretName": "default-group-se-xds"}}
    ),
    "a ConfigMap of somebody": lambda m: _pod(m)["volumes"].append(
        {"name": "c", "configMap": {"name": "akocore-accepted"}}
    ),
    "the account's token": lambda m: _pod(m).update(automountServiceAccountToken=True),
    "the controller's account": lambda m: _pod(m).update(serviceAccountName="akocore"),
    "the node's processes": lambda m: _pod(m).update(hostPID=True),
    "a command as a probe": lambda m: _main(m).update(livenessProbe=_PROBE),
}


@pytest.fixture(scope="module")
def guarded(installed: ControlPlane) -> Iterator[ControlPlane]:
    """The control plane with the policies, in force."""
    items = {"apiVersion": "v1", "kind": "List", "items": admission_policy(HOME, IMAGE)}
    made = orjson.dumps(items)
    installed.kubectl("apply", "-f", "-", stdin=made)
    for _ in range(100):  # until the API server has compiled them
        if _refusal(installed, "another image"):
            break
    yield installed
    installed.kubectl("delete", "-f", "-", stdin=made)


def _apply(plane: ControlPlane, obj: dict[str, Any]) -> None:
    words = ("--server-side", "--dry-run=server", "--force-conflicts", "-n", HOME, ACCOUNT)
    plane.kubectl("apply", *words, "-f", "-", stdin=orjson.dumps(obj))


def _refusal(plane: ControlPlane, edit: str) -> str:
    made = deepcopy(_engines())
    EDITS[edit](made)
    try:
        _apply(plane, made)
    except RuntimeError as err:
        return str(err)
    return ""


def test_what_the_controller_makes_is_let_through(guarded: ControlPlane) -> None:
    _apply(guarded, _engines())
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "se-group-x-xds"}}
    _apply(guarded, secret)


@pytest.mark.parametrize("edit", EDITS)
def test_anything_else_is_denied(guarded: ControlPlane, edit: str) -> None:
    assert "ValidatingAdmissionPolicy 'akocore-service-engines'" in _refusal(guarded, edit)


def test_a_secret_that_asks_for_a_token_is_denied(guarded: ControlPlane) -> None:
    meta = {"name": "se-x-xds", "annotations": {"kubernetes.io/service-account.name": "default"}}
    kind = "kubernetes.io/service-account-token"
    with pytest.raises(RuntimeError, match="akocore-secrets"):
        _apply(guarded, {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": meta})
