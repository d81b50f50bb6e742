"""An agent in a pod, from its start without a controller to requests served by its Envoy."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
import sys
import tempfile
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from agent.conftest import Process
from akocore.kube.api import ApiServer
from akocore.kube.authority import Authority, utc_now
from akocore.kube.credentials import find_credentials
from akocore.kube.workloads import LABELS
from akocore.pairs import Pair, pem, write_pair
from cluster.control_plane import ControlPlane
from cluster.controller import OBJECTS, Controller
from e2e.running import Client

pytestmark = pytest.mark.real

_HOME = ("-n", "akocore-system")
_NAME = "default-group-se-0"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Short, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="se-") as name:
        yield Path(name)


class Pod:
    """What a StatefulSet's controller and a kubelet make of a pod of a group."""

    def __init__(self, maker: Controller, home: Path, xds: int, certificates: int) -> None:
        self.maker = maker
        self.home = home
        self.health = _free_port()
        self.state = home / "state"
        self._certificates = certificates
        self._xds = xds
        self.process: Process | None = None

    def create(self) -> None:
        """The pod's object, owned by the StatefulSet, and the files of its volumes."""
        plane = self.maker.plane
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        plane.kubectl("apply", *_HOME, "-f", "-", stdin=json.dumps(account))
        made = self.made("statefulset", "default-group-se")
        owner = {k: made[k] for k in ("apiVersion", "kind")}
        owner |= {k: made["metadata"][k] for k in ("name", "uid")} | {"controller": True}
        template = made["spec"]["template"]["spec"]
        template["serviceAccountName"] = "default"
        meta = {"name": _NAME, "labels": LABELS, "ownerReferences": [owner]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template}
        plane.kubectl("create", *_HOME, "-f", "-", stdin=json.dumps(pod))
        volumes = {v["name"]: v for v in template["volumes"]}
        (source,) = volumes["token"]["projected"]["sources"]
        words = ["--bound-object-kind", "Pod", "--bound-object-name", _NAME]
        words += ["--audience", source["serviceAccountToken"]["audience"]]
        token = plane.kubectl("create", *_HOME, "token", "default", *words)
        (self.home / "token").write_text(token)
        known_by = self.made("configmap", volumes["ca"]["configMap"]["name"])
        (self.home / "ca.crt").write_text(known_by["data"]["ca.crt"])

    def made(self, kind: str, name: str) -> dict[str, Any]:
        text = self.maker.plane.kubectl("get", *_HOME, kind, name, "-o", "json")
        found: dict[str, Any] = json.loads(text)
        return found

    async def older(self) -> None:
        """Files as a release had them that gave pods their keys."""
        async with ApiServer(lambda: find_credentials(self.maker.kubeconfig)) as api:
            authority = Authority(api, "akocore-system", utc_now)
            await authority.load()
        key = ec.generate_private_key(ec.SECP256R1())
        signed = authority.sign(key.public_key(), _NAME, "Default-Group")
        write_pair(self.home / "older", Pair(signed, pem(key)), authority.ca)

    def start(self, *own: str) -> None:
        """``own``: what it has of a certificate; by default it must ask."""
        asks = ["--certificates", f"127.0.0.1:{self._certificates}"]
        asks += ["--token", str(self.home / "token"), "--ca", str(self.home / "ca.crt")]
        self.process = Process(
            [
                *(sys.executable, "-m", "akocore", "se", "run", "--name", _NAME),
                *("--group", "Default-Group", "--controller", f"127.0.0.1:{self._xds}"),
                *("--controller-name", "akocore-xds.akocore-system.svc"),
                *(own or asks),
                *("--address", "127.0.0.1", "--state", str(self.state)),
                *("--metrics-listen", f"127.0.0.1:{self.health}", "--flows", "0"),
            ],
            self.home / "agent.log",
        )

    async def ready(self) -> tuple[int, str]:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.health}/readyz") as answer,
            ):
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""

    async def until(self, status: int, text: str = "") -> None:
        try:
            async with asyncio.timeout(40):
                while not ((said := await self.ready())[0] == status and text in said[1]):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            log = (self.home / "agent.log").read_text()[-3000:]
            pytest.fail(f"{said}; {log}; {self.maker.log.read_text()[-3000:]}")


@pytest_asyncio.fixture
async def pod(scratch: Path, plane: ControlPlane, endpoint: str) -> AsyncIterator[Pod]:
    maker = Controller(scratch / "one", plane, endpoint)
    xds, certificates = _free_port(), _free_port()
    maker.flags = [
        *("--engines", "external", "--xds-listen", f"127.0.0.1:{xds}"),
        *("--certificates-listen", f"127.0.0.1:{certificates}", "--lease-duration", "2"),
        *("--se-image", "registry.example/service-engine:1"),
    ]
    plane.bind_controller()
    maker.apply(OBJECTS)
    made = Pod(maker, scratch, xds, certificates)
    yield made
    if made.process is not None and made.process.running:
        made.process.send(signal.SIGTERM)
        await made.process.ended()
    await maker.stop()
    everything = "statefulsets,poddisruptionbudgets,secrets,configmaps,pods"
    plane.kubectl("delete", *_HOME, "--all", "--grace-period=0", "--force", everything)


async def test_a_pod_makes_its_key_and_serves_by_what_a_controller_has_signed(pod: Pod) -> None:
    maker = pod.maker
    maker.apps(1, "critical-ic")
    await maker.start()
    await maker.until(
        lambda: "default-group-se" in maker.plane.kubectl("get", *_HOME, "poddisruptionbudgets")
    )
    pod.create()
    await maker.stop()
    pod.start()
    await pod.until(503, "no certificate: ")
    assert "event=envoy" not in (pod.home / "agent.log").read_text()
    await maker.start()
    await pod.until(200)
    key = pod.state / "identity" / "tls.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    await maker.until(lambda: len(maker.shown()) == 1)
    client = Client()
    try:
        async with asyncio.timeout(60):
            while await client.get(maker.shown()[1], "hello1.avi.iberia.local") != 200:
                await asyncio.sleep(0.1)
    finally:
        client.close()
    # Nothing of it is anywhere in the cluster.
    secrets = json.loads(maker.plane.kubectl("get", "-A", "secrets", "-o", "json"))["items"]
    texts = [b64decode(text) for one in secrets for text in one.get("data", {}).values()]
    assert texts
    assert key.read_bytes() not in texts


async def test_an_engine_that_was_given_its_key_by_an_older_release_is_served_on(pod: Pod) -> None:
    maker = pod.maker
    maker.apps(1, "critical-ic")
    await maker.start()
    await maker.until_ready()
    await pod.older()
    files = pod.home / "older"
    pair = ("--cert", str(files / "tls.crt"), "--key", str(files / "tls.key"))
    pod.start(*pair, "--ca", str(files / "ca.crt"))
    await pod.until(200)
    assert not (pod.state / "identity").exists()
