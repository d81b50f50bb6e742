"""``kubectl akocore ...``: what the akocore of a cluster knows, asked through kubectl.

``get`` and ``explain`` are run in the pod of the controller that leads; every other command runs
here, as ``akocore`` does.
"""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["main"]

_ASKED = ("get", "explain")


def _options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """kubectl's own options, which come first, and the rest."""
    mine: list[str] = []
    rest = list(arguments)
    while rest and rest[0].split("=")[0] in ("--context", "--kubeconfig", "-n", "--namespace"):
        mine.append(rest.pop(0))
        if "=" not in mine[-1] and rest:
            mine.append(rest.pop(0))
    return mine, rest


def _leader(options: list[str]) -> str:
    """The pod that has the Lease, else any: its deployment."""
    holder = ("get", "lease", "akocore", "-o", "jsonpath={.spec.holderIdentity}")
    done = subprocess.run(
        ["kubectl", *options, *holder], capture_output=True, text=True, check=False
    )
    return done.stdout.rpartition("_")[0] or "deploy/akocore"


def main() -> None:
    options, rest = _options(sys.argv[1:])
    if not rest or rest[0] not in _ASKED:
        from akocore.cli import app

        app()(rest, prog_name="kubectl akocore")
        return
    if not {"-n", "--namespace"} & {one.split("=")[0] for one in options}:
        options += ["--namespace", "akocore-system"]
    command = ["kubectl", *options, "exec", _leader(options), "--", "akocore", *rest]
    try:
        os.execvp("kubectl", command)
    except FileNotFoundError:
        sys.exit("akocore: kubectl is missing. Put it on the PATH.")
