"""A true cluster on this machine: kubelets, containerd, pods.  Started in some 15 s."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

_SCRIPTS = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "akocore"
HOME = Path(os.environ.get("AKOCORE_NODES_HOME") or CACHE / "nodes")
NAMESPACE = "ako-k8s"
"""The network namespace of the control plane and of who asks it; the nodes hang on its bridge."""


class Nodes:
    """The cluster; `start` is for one that is there, too."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.kubeconfig = HOME / "run/pki/admin.kubeconfig"

    @property
    def running(self) -> bool:
        """Whether there is one, of an earlier start."""
        return (Path("/run/netns") / NAMESPACE).exists()

    def start(self) -> None:
        """Build what is missing, start what doesn't run, wait until all of it is ready."""
        self._script("up")

    def stop(self) -> None:
        """End it, and forget all of it but programs and images."""
        self._script("down")

    def cut_power(self, node: int) -> None:
        self._script("node", "kill", str(node))

    def stop_api_server(self) -> None:
        self._script("control-plane", "stop-api")

    def start_api_server(self) -> None:
        """Until pods of every node reach it: it has taken itself out of Service "kubernetes" as it
        ended, and kube-proxies may need a minute to look again.
        """
        self._script("control-plane", "start")
        deadline = time.monotonic() + 180
        for node in range(1, self.count + 1):
            while not self._reaches_api_server(node):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"pods of n{node} don't reach the API server")
                time.sleep(1)

    def _reaches_api_server(self, node: int) -> bool:
        asking = ("curl", "-sk", "-o", "/dev/null", "--max-time", "2", "https://10.96.0.1/readyz")
        try:
            self.on_node(node, *asking)
        except RuntimeError:
            return False
        return True

    def on_node(self, node: int, *command: str) -> str:
        """What a command says in a node's namespaces."""
        return self._script("node", "sh", str(node), *command)

    def _script(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [_SCRIPTS / name, *arguments],
            env={**os.environ, "NODES": str(self.count)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stderr[-3000:]}")
        return done.stdout

    def kubectl(
        self, *arguments: str, stdin: str | None = None, allow: Sequence[int] = (0,)
    ) -> str:
        programs = next(CACHE.glob("kubernetes-v*/kubectl"))
        command = [str(programs), "--kubeconfig", str(self.kubeconfig), *arguments]
        return within(NAMESPACE, command, stdin, allow)

    def warnings(self, *arguments: str) -> list[str]:
        """What the API server warns of when kubectl asks it."""
        programs = next(CACHE.glob("kubernetes-v*/kubectl"))
        command = [str(programs), "--kubeconfig", str(self.kubeconfig), *arguments]
        said = within(NAMESPACE, ["sh", "-c", '"$@" 2>&1 >/dev/null', "sh", *command])
        return [line.removeprefix("Warning: ") for line in said.splitlines()]

    def plugin(self, *arguments: str) -> str:
        """What ``kubectl akocore ...`` says."""
        programs = next(CACHE.glob("kubernetes-v*/kubectl")).parent
        run = "from akocore.cli.kubectl_plugin import main; main()"
        options = ("--kubeconfig", str(self.kubeconfig))
        command = ["env", f"PATH={programs}:{os.environ['PATH']}", sys.executable, "-c", run]
        return within(NAMESPACE, [*command, *options, *arguments])

    def get(self, *arguments: str) -> Any:
        """What ``kubectl get ... -o json`` says."""
        return orjson.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any] | str) -> None:
        for one in objects:
            text = one if isinstance(one, str) else orjson.dumps(one).decode()
            self.kubectl("apply", "-f", "-", stdin=text)

    def ask(self, address: str, host: str, namespace: str = NAMESPACE) -> str:
        """The body of an answer to ``GET /``."""
        command = ["curl", "-sS", "--fail", "--max-time", "5", "-H", f"Host: {host}"]
        return within(namespace, [*command, f"http://{address}/"])

    def helm(self, *arguments: str) -> str:
        command = [str(CACHE / "programs/helm"), "--kubeconfig", str(self.kubeconfig)]
        return within(NAMESPACE, [*command, *arguments])


def within(
    namespace: str,
    command: Sequence[str],
    stdin: str | None = None,
    allow: Sequence[int] = (0,),
) -> str:
    """What a command says in a network namespace.

    Raises `RuntimeError` with what went wrong when it ends with another code than ``allow``.
    """
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in allow:
        raise RuntimeError(f"{' '.join(command[:8])} ...: {done.stderr[-3000:]}")
    return done.stdout
