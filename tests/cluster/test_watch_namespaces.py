"""A controller of chosen namespaces serves these, by Roles in them, and can't read the others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from akocore.cli.dummy import manifests
from akocore.kube.crds import divided_rules
from cluster.control_plane import ControlPlane
from cluster.controller import OBJECTS, Controller
from e2e.running import Client

pytestmark = pytest.mark.real

_GROUP = "rbac.authorization.k8s.io"
_ACCOUNT = {"name": "narrow", "namespace": "akocore-system"}
_NARROW = {"kind": "ServiceAccount", **_ACCOUNT}
_THERE = ("mine", "theirs")
_WHO = "--as=system:serviceaccount:akocore-system:narrow"


def _bound(kind: str, name: str, namespace: str, rules: Any = None) -> list[dict[str, Any]]:
    """A role of these rules, or one that is there, for the account."""
    meta = {"name": name, **({"namespace": namespace} if namespace else {})}
    binding = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": f"{kind}Binding",
        "metadata": {**meta, "name": "narrow"},
        "roleRef": {"apiGroup": _GROUP, "kind": kind, "name": name},
        "subjects": [_NARROW],
    }
    role = {"apiVersion": f"{_GROUP}/v1", "kind": kind, "metadata": meta, "rules": rules}
    return [binding] if rules is None else [role, binding]


@pytest_asyncio.fixture
async def narrow(tmp_path: Path, plane: ControlPlane, endpoint: str) -> AsyncIterator[Controller]:
    """One of namespace mine; there is theirs, too, and both have an application."""
    of_cluster, of_namespaces = divided_rules()
    items = [
        *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in _THERE),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _ACCOUNT},
        *_bound("ClusterRole", "narrow", "", of_cluster),
        *_bound("Role", "narrow", "mine", of_namespaces),
        *_bound("Role", "akocore", "akocore-system"),
    ]
    for number, namespace in enumerate(_THERE, 1):
        for one in manifests("hello", number, ingress_class="critical-ic", endpoint=endpoint):
            one["metadata"]["namespace"] = namespace
            items.append(one)
    made = Controller(tmp_path, plane, endpoint)
    made.apply(OBJECTS)
    made.apply(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    token = plane.kubectl("create", "token", "narrow", "-n", "akocore-system").strip()
    made.kubeconfig = tmp_path / "narrow"
    plane._write_kubeconfig(made.kubeconfig, {"token": token})
    made.config += "watchNamespaces: [mine]\n"
    yield made
    await made.stop()
    plane.kubectl("delete", "ns", *_THERE, "--wait=false")
    plane.kubectl("delete", "clusterrole,clusterrolebinding", "narrow")
    for what in ("ingress", "service", "endpointslice"):
        for namespace in _THERE:
            plane.kubectl("delete", what, "--all", "-n", namespace, "--wait=false")


async def test_it_serves_its_namespace_and_reads_no_other(narrow: Controller) -> None:
    kubectl = narrow.plane.kubectl

    def address(namespace: str, name: str) -> str:
        path = "-o=jsonpath={.status.loadBalancer.ingress[0].ip}"
        return kubectl("get", "ingress", name, "-n", namespace, path)

    await narrow.start()
    await narrow.until(lambda: address("mine", "hello1") != "")
    client = Client()
    mine = address("mine", "hello1")

    async def answers(host: str, status: int) -> bool:
        return await client.get(mine, host) == status

    for _ in range(100):
        if await answers("hello1.avi.iberia.local", 200):
            break
    assert await answers("hello1.avi.iberia.local", 200)
    assert await answers("hello2.avi.iberia.local", 404)
    client.close()
    assert address("theirs", "hello2") == ""
    assert [i["metadata"]["name"] for i in await narrow.ask("ingress")] == ["hello1"]
    assert "Forbidden" not in narrow.log.read_text()
    assert kubectl("auth", "can-i", "watch", "secrets", "-n", "mine", _WHO).strip() == "yes"
    with pytest.raises(RuntimeError):  # it says no, and fails
        kubectl("auth", "can-i", "watch", "secrets", "-n", "theirs", _WHO)
