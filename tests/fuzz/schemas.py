"""The schemas that objects are made up from: of the API server and of every CRD, as they come.

``python -m fuzz.schemas`` (in ``tests``) writes them anew, from a real kube-apiserver's
``/openapi/v3``, the Gateway API's module and our own CRDs: without words for people, and with no
more than the kinds that akocore reads.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["RELEASES", "Kind", "definitions", "kinds", "own_definitions"]

Schema = dict[str, Any]
Kind = tuple[str, str]  # apiVersion and kind

HERE: Final = Path(__file__).with_name("schemas.json.gz")
RELEASES: Final = ("v1.6.1", "v1.7.0")
BUILT_IN: Final = {
    "apis/networking.k8s.io/v1": ("Ingress",),
    "api/v1": ("Service", "Secret"),
    "apis/discovery.k8s.io/v1": ("EndpointSlice",),
}
ROUTES: Final = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute")
OF_GATEWAYS: Final = ("Gateway", *ROUTES, "BackendTLSPolicy", "ListenerSet", "ReferenceGrant")
OURS: Final = ("AviInfraSetting", "Network", "ServiceEngineGroup", "Gateway")
_WORDS: Final = ("description", "example", "externalDocs", "title")


@lru_cache(1)
def kinds() -> dict[str, tuple[Kind, Schema]]:
    """What an object of each kind may be, by the kind's name (and release)."""
    found: dict[str, list[Any]] = json.loads(gzip.decompress(HERE.read_bytes()))
    return {name: ((one[0], one[1]), one[2]) for name, one in found.items()}


def _plain(part: Any) -> Any:
    if isinstance(part, dict):
        words = {k for k in _WORDS if isinstance(part.get(k), str)}
        return {k: _plain(v) for k, v in part.items() if k not in words}
    return [_plain(one) for one in part] if isinstance(part, list) else part


def _whole(schema: Any, all_: dict[str, Any], depth: int = 0) -> Any:
    """A schema with what it refers to in its place."""
    if isinstance(schema, list):
        return [_whole(one, all_, depth) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "allOf" in schema and len(schema["allOf"]) == 1 and "$ref" in schema["allOf"][0]:
        rest = {k: v for k, v in schema.items() if k != "allOf"}
        return {**_whole(schema["allOf"][0], all_, depth), **rest}
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _whole(all_[name], all_, depth + 1) if depth < 20 else {}
    return {k: _whole(v, all_, depth) for k, v in schema.items()}


def _of_spec(version: str, kind: str, schema: Schema) -> list[Any]:
    properties = dict(schema["properties"])
    for part in ("status", "metadata", "apiVersion", "kind"):
        properties.pop(part, None)
    required = [one for one in schema.get("required", ()) if one in properties]
    return [
        version,
        kind,
        _plain({"type": "object", "properties": properties, "required": required}),
    ]


def _built_in() -> Iterator[tuple[str, list[Any]]]:
    from cluster.control_plane import ControlPlane

    with tempfile.TemporaryDirectory() as scratch:
        plane = ControlPlane(Path(scratch))
        plane.start()
        try:
            for path, names in BUILT_IN.items():
                raw = plane.kubectl("get", "--raw", f"/openapi/v3/{path}")
                all_ = json.loads(raw)["components"]["schemas"]
                group, _, version = path.removeprefix("apis/").removeprefix("api/").rpartition("/")
                for name in names:
                    full = next(
                        one
                        for one in all_
                        if one.endswith(f".{version}.{name}")
                        and "x-kubernetes-group" in str(all_[one])
                    )
                    own = f"{group}/{version}" if group else version
                    yield name, _of_spec(own, name, _whole(all_[full], all_))
        finally:
            plane.stop()


def _definitions(text: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, list[Any]]]:
    for one in yaml.safe_load_all(text):
        if not one or one.get("kind") != "CustomResourceDefinition":
            continue
        kind = one["spec"]["names"]["kind"]
        served = [v for v in one["spec"]["versions"] if v["served"]]
        if kind in wanted:
            best = next((v for v in served if v["name"] == "v1"), served[-1])
            version = f"{one['spec']['group']}/{best['name']}"
            yield kind, _of_spec(version, kind, best["schema"]["openAPIV3Schema"])


def definitions(release: str) -> list[str]:
    """The experimental definitions of a release of the Gateway API.

    Out of the module's archive: Go unpacks no module that wants a newer Go than there is.
    """
    done = subprocess.run(
        ["go", "mod", "download", "-json", f"sigs.k8s.io/gateway-api@{release}"],
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )
    with zipfile.ZipFile(json.loads(done.stdout)["Zip"]) as archive:
        return [
            archive.read(name).decode()
            for name in sorted(archive.namelist())
            if "/config/crd/experimental/gateway." in name and "vap" not in name
        ]


def own_definitions() -> str:
    """akocore's own."""
    command = [Path(sys.executable).with_name("akocore"), "crds"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    out: dict[str, list[Any]] = dict(_built_in())
    for release in RELEASES:
        for text in definitions(release):
            for kind, found in _definitions(text, OF_GATEWAYS):
                out[f"{kind} {release}"] = found
    for kind, found in _definitions(own_definitions(), OURS):
        out[f"{kind} of L4" if kind == "Gateway" else kind] = found
    HERE.write_bytes(gzip.compress(json.dumps(out, sort_keys=True).encode(), mtime=0))
    print(", ".join(out), HERE.stat().st_size)


if __name__ == "__main__":
    main()
