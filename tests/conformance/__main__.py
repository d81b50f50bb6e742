"""``make conformance``: the Gateway API's own suite against akocore, a real API server and Envoys.

``CONFORMANCE_ARGS='-run-test=HTTPRouteCORS'`` chooses; ``-report-output FILE`` writes a report.
Pods are processes (`Pods`).  As root; best in network and mount namespaces of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.control_plane import ControlPlane
from cluster.controller import install
from cluster.gateway_api import definitions
from conformance.pods import Pods

CLASS = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: vips}
spec: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.225, end: 127.10.16.254}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: conformance}
spec: {network: {names: [vips]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: avi-lb}
spec:
  controllerName: ako.vmware.com/avi-lb
  parametersRef: {group: ako.vmware.com, kind: AviInfraSetting, name: conformance}
"""
OPTIONS = """
usableNetworkAddresses: [{type: IPAddress, value: 127.10.16.253}]
unusableNetworkAddresses: [{type: IPAddress, value: 203.0.113.13}]
"""


def main(arguments: list[str]) -> int:
    """Run the suite; its exit code.  Its whole output is in the file that is named at the end."""
    build = Path(__file__).with_name("build")
    done = subprocess.run([build], stdout=subprocess.PIPE, text=True, check=True)
    programs = Path(done.stdout.split()[-1])
    output = Path(tempfile.gettempdir()) / "akocore-conformance.txt"
    with tempfile.TemporaryDirectory(prefix="ak-") as scratch:
        home = Path(scratch)
        plane = ControlPlane(home / "plane")
        pods = Pods(plane, home / "pods", programs / "echo")
        controller = None
        try:
            plane.start()
            install(plane)
            plane.start_namespace_controller(
                "deployment-controller",
                "replicaset-controller",
                "endpointslice-controller",
                "garbage-collector-controller",
            )
            plane.kubectl("apply", "--server-side", "-f", definitions())
            crd = "crd/gatewayclasses.gateway.networking.k8s.io"
            plane.kubectl("wait", "--for=condition=Established", crd)
            plane.kubectl("apply", "-f", "-", stdin=CLASS)
            pods.start()
            (home / "config.yaml").write_text("moveGraceSeconds: 1\n")
            controller = subprocess.Popen(
                [
                    *(sys.executable, "-m", "akocore", "controller", "--metrics-listen", ""),
                    *("--kubeconfig", plane.controllers_kubeconfig, "--state", home / "state"),
                    *("--config", home / "config.yaml"),
                ],
                stderr=subprocess.DEVNULL,
            )
            (home / "options.yaml").write_text(OPTIONS)
            _until_accepted(plane)
            with output.open("wb") as file:
                code = subprocess.run(
                    [
                        *(programs / "suite", "-test.v", "-test.timeout=60m"),
                        *("-gateway-class=avi-lb", "-conformance-options-file"),
                        *(home / "options.yaml", *arguments),
                    ],
                    env={**os.environ, "KUBECONFIG": str(plane.kubeconfig)},
                    stdout=file,
                    stderr=file,
                    check=False,
                ).returncode
        finally:
            if controller is not None:
                controller.terminate()
                controller.wait()
            pods.stop()
            plane.stop()
    text = output.read_text(errors="replace")
    for word in ("PASS", "FAIL", "SKIP"):
        names = re.findall(rf"^    --- {word}: TestConformance/(\S+)", text, re.MULTILINE)
        shown = f": {', '.join(names)}" if word == "FAIL" and names else ""
        print(f"{word} {len(names)}{shown}")
    print(f"the suite's own words: {output}")
    return code


def _until_accepted(plane: ControlPlane) -> None:
    deadline = time.monotonic() + 60
    words = ("get", "gatewayclasses.gateway.networking.k8s.io", "avi-lb", "-o", "json")
    while '"supportedFeatures"' not in plane.kubectl(*words):
        if time.monotonic() > deadline:
            raise TimeoutError("the GatewayClass is not accepted after 60 s")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
