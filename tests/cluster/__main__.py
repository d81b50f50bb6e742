"""A control plane to try things on, and the soak: ``make cluster-up``, ``make soak``."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.control_plane import ControlPlane
from cluster.controller import install
from cluster.pods import pods

OFFSET = 8000


@contextlib.contextmanager
def up() -> Iterator[tuple[ControlPlane, str, Path]]:
    """A control plane with akocore installed, a backend's address, and a scratch directory."""
    with tempfile.TemporaryDirectory(prefix="akocore-") as scratch, pods() as endpoint:
        plane = ControlPlane(Path(scratch) / "plane")
        try:
            plane.start()
            install(plane)
            yield plane, endpoint, Path(scratch)
        finally:
            plane.stop()


def soak(arguments: list[str]) -> int:
    """``akocore soak`` against a controller of its own; its exit code."""
    with up() as (plane, endpoint, scratch):
        akocore = [sys.executable, "-m", "akocore"]
        state = ["--state", str(scratch / "state"), "--port-offset", str(OFFSET)]
        log = (scratch / "akocore.log").open("wb")
        command = [*akocore, "controller", "--kubeconfig", str(plane.controllers_kubeconfig)]
        controller = subprocess.Popen([*command, *state], stderr=log)
        try:
            while not (scratch / "state" / "control.sock").exists():
                if controller.poll() is not None:
                    sys.exit((scratch / "akocore.log").read_text())
                time.sleep(0.1)
            command = [*akocore, "soak", "--kubeconfig", str(plane.kubeconfig), *state]
            return subprocess.run(
                [*command, "--endpoint", endpoint, *arguments], check=False
            ).returncode
        finally:
            controller.send_signal(signal.SIGTERM)
            controller.wait()
            log.close()


def stay() -> None:
    """Say what to try, and wait for Ctrl-C."""
    with up() as (plane, endpoint, scratch):
        print(
            f"""
export KUBECONFIG={plane.kubeconfig} PATH={plane.programs}:$PATH
akocore controller --kubeconfig $KUBECONFIG --state {scratch}/state --port-offset {OFFSET} &
akocore dummy 20 apply hello --endpoint {endpoint}
kubectl get ingress,vs,se
curl -H 'Host: hello1.avi.iberia.local' http://127.10.15.161:{80 + OFFSET}/

Ctrl-C takes it all away."""
        )
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == ["soak"]:
        sys.exit(soak(sys.argv[2:]))
    stay()
