"""With the controller's token one can make Service Engines, and nothing else, at an API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import msgspec
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
    "a command as the probe of a start": lambda m: _main(m).update(startupProbe=_PROBE),
    "a probe that the kubelet sends elsewhere": lambda m: _main(m)["readinessProbe"][
        "httpGet"
    ].update(host="127.0.0.1"),
    "a probe of another port": lambda m: _main(m)["livenessProbe"]["httpGet"].update(port=10250),
    "a command after its start": lambda m: _main(m).update(lifecycle={"postStart": _PROBE}),
    "a command before its end": lambda m: _main(m).update(lifecycle={"preStop": _PROBE}),
    "the node's IPC": lambda m: _pod(m).update(hostIPC=True),
    "a node by name": lambda m: _pod(m).update(nodeName="control-plane"),
    "other names in its hosts": lambda m: _pod(m).update(
        hostAliases=[{"ip": "192.0.2.1", "hostnames": ["akocore-xds"]}]
    ),
    "another runtime": lambda m: _pod(m).update(runtimeClassName="other"),
    "a user namespace": lambda m: _pod(m).update(hostUsers=False, hostNetwork=False),
    "settings of the kernel": lambda m: _pod(m).update(
        hostNetwork=False,
        securityContext={"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]},
    ),
    "another label of SELinux for the pod": lambda m: _pod(m).update(
        securityContext={"seLinuxOptions": {"type": "spc_t"}}
    ),
    "another label of SELinux": lambda m: _main(m)["securityContext"].update(
        seLinuxOptions={"type": "spc_t"}
    ),
    "no AppArmor": lambda m: _main(m)["securityContext"].update(
        appArmorProfile={"type": "Unconfined"}
    ),
    "no AppArmor by annotation": lambda m: m["spec"]["template"]["metadata"].update(
        annotations={"container.apparmor.security.beta.kubernetes.io/service-engine": "unconfined"}
    ),
    "a label that webhooks heed": lambda m: m["spec"]["template"]["metadata"]["labels"].update(
        {"sidecar.istio.io/inject": "true"}
    ),
    "no seccomp": lambda m: _main(m)["securityContext"].update(
        seccompProfile={"type": "Unconfined"}
    ),
    "a root that can be written to": lambda m: _main(m)["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "all of /proc": lambda m: (
        _pod(m).update(hostUsers=False, hostNetwork=False),
        _main(m)["securityContext"].update(procMount="Unmasked"),
    ),
    "a program that it is told of": lambda m: _main(m)["args"].append("--envoy=/etc/akocore/ca/x"),
    "another place for its state": lambda m: _main(m)["args"].append("--state=/proc"),
    "a variable": lambda m: _main(m)["env"].append({"name": "PYTHONPATH", "value": "/tmp"}),
    "a variable of a Secret": lambda m: _main(m)["env"][1].update(
        valueFrom={"secretKeyRef": {"name": "akocore-xds-ca", "key": "k"}}
    ),
    "all variables of a Secret": lambda m: _main(m).update(
        envFrom=[{"secretRef": {"name": "akocore-xds-ca"}}]
    ),
    "a file over one of the image's": lambda m: _main(m)["volumeMounts"].append(
        {"name": "ca", "mountPath": "/usr/local/bin"}
    ),
    "a part of a volume": lambda m: _main(m)["volumeMounts"][2].update(subPath="x"),
    "what others mount later": lambda m: _main(m)["volumeMounts"][2].update(
        mountPropagation="HostToContainer"
    ),
    "where its last words are": lambda m: _main(m).update(terminationMessagePath="/run/akocore/x"),
    "another volume with an own name": lambda m: _pod(m)["volumes"].append(
        {"name": "more", "emptyDir": {}}
    ),
    "a terminal": lambda m: _main(m).update(stdin=True, tty=True),
    "another directory": lambda m: _main(m).update(workingDir="/tmp"),
    "resources of devices": lambda m: _pod(m).update(
        resourceClaims=[{"name": "d", "resourceClaimName": "d"}]
    ),
    "volumes for ever": lambda m: m["spec"].update(
        volumeClaimTemplates=[
            {
                "metadata": {"name": "disk"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }
        ]
    ),
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


def test_all_that_a_group_may_ask_for_is_let_through(guarded: ControlPlane) -> None:
    words = {
        "hostNetwork": False,
        "drainSeconds": 7,
        "nodeSelector": {"edge": "yes"},
        "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "high",
        "requests": {"cpu": "1"},
        "limits": {"memory": "1Gi"},
    }
    spec = msgspec.convert({"pods": words}, ServiceEngineGroupSpec)
    assert not spec.pods.host_network
    image = Image(IMAGE, "Always", "a:18000,b:18000", "a:18001,b:18001")
    _apply(guarded, stateful_set("edge", spec, 1, image))


def test_a_restart_by_an_administrator_stays(guarded: ControlPlane) -> None:
    made = _engines()
    made["spec"]["template"]["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z"
    }
    _apply(guarded, made)


def test_kubernetes_has_no_doubt_about_an_expression(guarded: ControlPlane) -> None:
    guarded.start_namespace_controller("validatingadmissionpolicy-status-controller")
    policy = ("validatingadmissionpolicy", "akocore-service-engines")
    guarded.kubectl("wait", *policy, "--for=jsonpath={.status.observedGeneration}", "--timeout=60s")
    status = orjson.loads(guarded.kubectl("get", *policy, "-o", "json"))["status"]
    assert not status.get("typeChecking", {}).get("expressionWarnings")


@pytest.mark.parametrize("edit", EDITS)
def test_anything_else_is_denied(guarded: ControlPlane, edit: str) -> None:
    assert "ValidatingAdmissionPolicy 'akocore-service-engines'" in _refusal(guarded, edit)


def test_a_secret_that_asks_for_a_token_is_denied(guarded: ControlPlane) -> None:
    meta = {"name": "se-x-xds", "annotations": {"kubernetes.io/service-account.name": "default"}}
    kind = "kubernetes.io/service-account-token"
    with pytest.raises(RuntimeError, match="akocore-secrets"):
        _apply(guarded, {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": meta})
