"""Packs a static program as an image, an OCI layout in a tar that `ctr images import` reads."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

_OCI = "application/vnd.oci.image"


def _layer(program: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.mode, entry.size = 0o755, program.stat().st_size
        with program.open("rb") as content:
            tar.addfile(entry, content)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("tags", help="with commas")
    parser.add_argument("program", type=Path)
    parser.add_argument("--entry", required=True)
    parser.add_argument("--user", required=True)
    arguments = parser.parse_args()
    blobs: dict[str, bytes] = {}

    def put(blob: bytes) -> dict[str, str | int]:
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        blobs[digest] = blob
        return {"digest": digest, "size": len(blob)}

    def put_json(value: object) -> dict[str, str | int]:
        return put(json.dumps(value, sort_keys=True).encode())

    platform = {"architecture": "amd64", "os": "linux"}
    layer = put(_layer(arguments.program))
    config = put_json(
        {
            **platform,
            "created": "1970-01-01T00:00:00Z",
            "config": {"Entrypoint": [arguments.entry], "User": arguments.user},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
    )
    manifest = put_json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": {"mediaType": f"{_OCI}.config.v1+json", **config},
            "layers": [{"mediaType": f"{_OCI}.layer.v1.tar", **layer}],
        }
    )
    manifests = [
        {
            "mediaType": f"{_OCI}.manifest.v1+json",
            **manifest,
            "platform": platform,
            "annotations": {"io.containerd.image.name": tag},
        }
        for tag in arguments.tags.split(",")
    ]
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(),
        **{f"blobs/{digest.replace(':', '/')}": blob for digest, blob in blobs.items()},
    }
    with tarfile.open(arguments.out, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o644, len(content)
            tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main()
