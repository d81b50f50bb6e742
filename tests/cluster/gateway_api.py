"""The published definitions of the Gateway API, from the Go module that they come with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

__all__ = ["GROUP", "VERSION", "definitions", "plural"]

GROUP = "gateway.networking.k8s.io"

VERSION = "v1.6.1"


def module() -> Path:
    """The API's own module; fetched into Go's cache at first use."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"sigs.k8s.io/gateway-api@{VERSION}"],
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return Path(json.loads(done.stdout)["Dir"])


def definitions(channel: str = "experimental") -> str:
    """A channel's definitions for ``kubectl -f``."""
    directory = module() / "config" / "crd" / channel
    return ",".join(sorted(str(p) for p in directory.glob("gateway.*.yaml") if "vap" not in p.name))


def plural(name: str) -> str:
    if name.endswith("cy"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"
