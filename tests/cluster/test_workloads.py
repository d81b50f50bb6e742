"""Service Engines as pods: what a controller makes of a ServiceEngineGroup in a real API server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from akocore.kube.workloads import LABELS
from cluster.control_plane import ControlPlane
from cluster.controller import OBJECTS, Controller

pytestmark = pytest.mark.real

_HOME = ("-n", "akocore-system")
_GROUP = """
apiVersion: akocore.io/v1alpha1
kind: ServiceEngineGroup
metadata: {name: edge}
spec:
  minSePerVs: 3
  pods:
    nodeSelector: {role: edge}
    tolerations: [{key: edge, operator: Exists}]
    limits: {memory: 1Gi}
    drainSeconds: 40
"""
_TO_EDGE = json.dumps({"spec": {"seGroup": {"name": "edge"}}})


@pytest_asyncio.fixture
async def maker(tmp_path: Path, plane: ControlPlane, endpoint: str) -> AsyncIterator[Controller]:
    """A controller that makes its Service Engines; nobody runs its pods here."""
    made = Controller(tmp_path, plane, endpoint)
    made.flags = [
        *("--engines", "external", "--xds-listen", "127.0.0.1:0"),
        *("--certificates-listen", "127.0.0.1:0"),
        *("--se-image", "registry.example/service-engine:1", "--lease-duration", "2"),
    ]
    made.apply(OBJECTS)
    yield made
    await made.stop()
    everything = "statefulsets,poddisruptionbudgets,secrets,pods"
    plane.kubectl("delete", *_HOME, "--all", "--wait=false", everything)


def _made(maker: Controller, kind: str) -> dict[str, dict[str, Any]]:
    items = json.loads(maker.plane.kubectl("get", *_HOME, kind, "-o", "json"))["items"]
    return {item["metadata"]["name"]: item for item in items}


def _hosts(maker: Controller) -> list[str]:
    """Of all virtual services."""
    items = json.loads(maker.plane.kubectl("get", "vs", "-o", "json"))["items"]
    return [item["status"]["name"] for item in items for _ in range(item["status"]["hosts"])]


async def test_the_first_ingress_of_a_group_brings_its_pods_and_no_key(maker: Controller) -> None:
    await maker.start()
    await maker.until_ready()
    assert _made(maker, "statefulsets") == {}
    maker.apps(1, "critical-ic")
    await maker.until(lambda: "default-group-se" in _made(maker, "poddisruptionbudgets"))
    pods = _made(maker, "statefulsets")["default-group-se"]["spec"]
    assert pods["replicas"] == 2
    (container,) = pods["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/service-engine:1"
    assert list(_made(maker, "secrets")) == ["akocore-xds-ca"]
    volumes = {v["name"]: v for v in pods["template"]["spec"]["volumes"]}
    (source,) = volumes["token"]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "akocore-xds"
    known_by = _made(maker, "configmaps")[volumes["ca"]["configMap"]["name"]]["data"]
    assert list(known_by) == ["ca.crt"]
    assert (
        b64decode(_made(maker, "secrets")["akocore-xds-ca"]["data"]["ca.crt"]).decode()
        == (known_by["ca.crt"])
    )


def _older(maker: Controller) -> None:
    """What a release before has left: a Secret with keys, and a pod that has it."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "default-group-se-xds"}}
    volume = {"name": "xds", "secret": {"secretName": "default-group-se-xds"}}
    spec = {"containers": [{"name": "se", "image": "registry.example/se:0"}], "volumes": [volume]}
    meta = {"name": "default-group-se-0", "labels": LABELS}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    for obj in (secret, pod):
        maker.plane.kubectl("create", *_HOME, "-f", "-", stdin=json.dumps(obj))


def _rolled_out(maker: Controller, current: str) -> None:
    """As kube-controller-manager says which pods come from now on."""
    generation = _made(maker, "statefulsets")["default-group-se"]["metadata"]["generation"]
    status = {"replicas": 2, "observedGeneration": generation}
    status |= {"currentRevision": current, "updateRevision": "new"}
    words = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    maker.plane.kubectl("patch", *_HOME, "statefulset", "default-group-se", *words)


async def test_keys_of_an_older_release_go_with_the_last_pod_that_has_them(
    maker: Controller,
) -> None:
    _older(maker)
    maker.apps(1, "critical-ic")
    await maker.start()
    await maker.until(lambda: "default-group-se" in _made(maker, "poddisruptionbudgets"))
    _rolled_out(maker, "old")
    await asyncio.sleep(17)  # it has looked since
    assert "default-group-se-xds" in _made(maker, "secrets")
    _rolled_out(maker, "new")
    await asyncio.sleep(17)
    assert "default-group-se-xds" in _made(maker, "secrets")
    gone = ("--grace-period=0", "--force", "pod", "default-group-se-0")
    maker.plane.kubectl("delete", *_HOME, *gone)
    await maker.until(lambda: "default-group-se-xds" not in _made(maker, "secrets"), 30)


async def test_a_group_says_how_many_pods_there_are_and_where(maker: Controller) -> None:
    maker.apply(_GROUP)
    maker.plane.kubectl("patch", "ais", "critical.infra", "--type=merge", "-p", _TO_EDGE)
    maker.apps(1, "critical-ic")
    await maker.start()
    await maker.until(lambda: "edge-se" in _made(maker, "statefulsets"))
    spec = _made(maker, "statefulsets")["edge-se"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 3
    assert pod["nodeSelector"] == {"role": "edge"}
    assert pod["tolerations"][0] == {"key": "edge", "operator": "Exists"}
    assert pod["terminationGracePeriodSeconds"] > 40
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    assert "--flows=40" in container["args"]
    more = json.dumps({"spec": {"minSePerVs": 4, "maxSe": 10}})
    maker.plane.kubectl("patch", "serviceenginegroup", "edge", "--type=merge", "-p", more)
    await maker.until(lambda: _made(maker, "statefulsets")["edge-se"]["spec"]["replicas"] == 4)


async def test_the_next_controller_keeps_pods_and_authority(maker: Controller) -> None:
    maker.apps(1, "critical-ic")
    await maker.start()
    await maker.until(lambda: "default-group-se" in _made(maker, "statefulsets"))
    before = _made(maker, "secrets")
    generation = _made(maker, "statefulsets")["default-group-se"]["metadata"]["generation"]
    await maker.stop()
    await maker.start()
    await maker.until_ready()
    maker.apps(1, "critical-ic", first=2)
    await maker.until(lambda: len(_hosts(maker)) == 2)
    after = _made(maker, "secrets")
    assert {n: s["data"] for n, s in after.items()} == {n: s["data"] for n, s in before.items()}
    now = _made(maker, "statefulsets")["default-group-se"]["metadata"]["generation"]
    assert now == generation


async def test_uninstalling_leaves_no_word_of_a_controller(maker: Controller) -> None:
    maker.apps(1, "critical-ic")
    await maker.start()
    await maker.until(lambda: "default-group-se" in _made(maker, "poddisruptionbudgets"))
    await maker.until(lambda: "Accepted" in maker.plane.kubectl("get", "ais"))
    await maker.stop()
    command = [sys.executable, "-m", "akocore", "uninstall"]
    command += ["--kubeconfig", str(maker.plane.kubeconfig)]
    await asyncio.to_thread(subprocess.run, command, check=True)
    assert "Accepted" not in maker.plane.kubectl("get", "ais,networks")
    for kind in ("statefulsets", "poddisruptionbudgets", "secrets", "configmaps", "leases"):
        assert _made(maker, kind) == {}
    for kind in ("vs", "se", "vsvips", "replicas"):
        assert json.loads(maker.plane.kubectl("get", kind, "-o", "json"))["items"] == []
