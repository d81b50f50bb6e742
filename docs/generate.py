"""Writes reference.md: CustomResourceDefinitions and metrics, as the code has them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from akocore.config import Config
from akocore.kube.crds import crds
from akocore.observe.metrics import Metrics
from akocore.observe.watch import Watch
from akocore.route_health import RouteHealth
from akocore.serve import Serve, of_directory

HERE = Path(__file__).parent


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    for name, inner in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        kind = inner.get("type", "any")
        item = inner
        if kind == "array":
            item = inner["items"]
            here, kind = f"{here}[]", f"{item.get('type', 'any')}"
        notes = []
        if "enum" in inner:
            notes.append(" \\| ".join(inner["enum"]))
        if "default" in inner:
            notes.append(f"default {str(inner['default']).lower()}")
        if "minimum" in inner or "maximum" in inner:
            low, high = inner.get("minimum", ""), inner.get("maximum")
            notes.append(f"at least {low}" if high is None else f"{low} to {high}")
        if name in schema.get("required", []):
            notes.append("required")
        if item.get("type") == "object" and "properties" in item:
            yield from _fields(item, here)
        else:
            yield here, kind, ", ".join(notes)


def _definitions() -> Iterator[str]:
    for one in crds():
        spec = one["spec"]
        names, version = spec["names"], spec["versions"][-1]
        short = f" (`{'`, `'.join(names['shortNames'])}`)" if names["shortNames"] else ""
        yield f"### {names['kind']}\n"
        versions = ", ".join(v["name"] for v in spec["versions"])
        yield f"`{spec['group']}` {versions}, {spec['scope'].lower()}, `{names['plural']}`{short}\n"
        yield "| field | type | |\n| --- | --- | --- |"
        for field, kind, notes in _fields(version["schema"]["openAPIV3Schema"]):
            if not field.startswith(("metadata", "apiVersion", "kind")):
                yield f"| `{field}` | {kind} | {notes} |"
        yield ""


def _metrics() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as scratch:
        manifests = Path(scratch) / "manifests"
        manifests.mkdir()
        serve = Serve(of_directory(manifests), Path(scratch) / "state", Config(), None)
        no_engines: Any = SimpleNamespace(held_s=0.0, running={}, elsewhere={}, leaving={})
        serve.routes = RouteHealth(serve.reconciler, no_engines, serve.events)
        metrics = Metrics()
        metrics.of(serve, Watch())
        text, _ = metrics.text("")
        serve.facts.close()
    yield "| metric | type | |\n| --- | --- | --- |"
    helps = {}
    for line in text.decode().splitlines():
        if line.startswith("# HELP "):
            _, _, name, said = line.split(" ", 3)
            helps[name] = said
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            if name.startswith("akocore_"):
                yield f"| `{name}` | {kind} | {helps.get(name, '')} |"


def reference() -> str:
    """The text of reference.md."""
    head = "# Reference\n\nWritten from the code by `make docs`.\n\n## Custom resources\n"
    return "\n".join([head, *_definitions(), "## Metrics of the controller\n", *_metrics(), ""])


if __name__ == "__main__":
    (HERE / "reference.md").write_text(reference())
    sys.stdout.write("docs/reference.md written\n")
