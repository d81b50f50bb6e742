"""Which made-up objects there can be: a real API server is asked, by a dry run.

What it answers is what akocore would be given: with defaults, and judged by schema and by CEL.
"""

from __future__ import annotations

import http.client
import random
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from akocore.kube.objects import KINDS
from cluster import gateway_api
from cluster.control_plane import ADMIN, ControlPlane
from fuzz.bases import base
from fuzz.generate import Maker, Schema
from fuzz.names import SERVICES, Names
from fuzz.schemas import RELEASES, Kind, definitions, kinds, own_definitions
from fuzz.spots import Deviations

__all__ = ["Judge", "Made", "server"]

_OFTEN: Final = {
    "HTTPRoute": 12,
    "GRPCRoute": 4,
    "Gateway": 3,
    "Ingress": 4,
    "EndpointSlice": 4,
    "Service": 2,
}
_WILD: Final = 0.1  # of the objects have anything anywhere
_ABREAST: Final = 4
_AHEAD: Final = 128


class Made(Struct, frozen=True):
    """A good object, and what of it lies at an edge ("wild": anything may)."""

    document: dict[str, Any]
    edges: tuple[str, ...]

    @property
    def said(self) -> str:
        meta = self.document["metadata"]
        return f"{self.document['kind']}/{meta['name']}: {'; '.join(self.edges) or 'plain'}"


@contextmanager
def server(home: Path, release: str) -> Iterator[int]:
    """A real API server with a release's definitions and our own; its port."""
    plane = ControlPlane(home)
    plane.start()
    try:
        texts = "\n---\n".join((*definitions(release), own_definitions()))
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=texts)
        plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield plane.port
    finally:
        plane.stop()


class _Kind:
    """How objects of one kind are made up."""

    def __init__(self, name: str, kind: Kind, schema: Schema, rng: random.Random) -> None:
        self.name = name
        self.version, self.kind = kind
        self.schema = schema
        self.plain = name.partition(" v")[0]
        self.names = Names()
        self.deviations = Deviations(
            schema, rng, Maker(rng, self.names.hint, self.names.also, tame=True)
        )


class Judge:
    """Makes objects up and asks the API server at a port about each.

    ``asked`` and ``good``: how many, by kind.
    """

    def __init__(self, port: int, seed: int, release: str) -> None:
        self.asked: Counter[str] = Counter()
        self.good: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._port = port
        others = [one for one in RELEASES if one != release]
        self._kinds = [
            _Kind(name, *one, self._rng)
            for name, one in kinds().items()
            if not any(name.endswith(f" {other}") for other in others)
        ]
        self._weights = [_OFTEN.get(one.plain, 1) for one in self._kinds]
        self._number = 0
        self._connections = threading.local()
        self._open: list[http.client.HTTPSConnection] = []

    def objects(self) -> Iterator[Made]:
        """Good objects, without end, in the same order each time.  To be closed."""
        with ExitStack() as closing, ThreadPoolExecutor(_ABREAST) as pool:
            closing.callback(self._close)
            due: list[tuple[str, Made, Future[dict[str, Any] | None]]] = []
            while True:
                while len(due) < _AHEAD:
                    name, made = self.make()
                    due.append((name, made, pool.submit(self._ask, made.document)))
                ready, due = due[: _AHEAD // 4], due[_AHEAD // 4 :]
                for name, made, asked in ready:
                    found = asked.result()
                    self.asked[name] += 1
                    if found is not None:
                        self.good[name] += 1
                        yield Made(found, made.edges)

    def _close(self) -> None:
        for one in self._open:
            one.close()

    def make(self) -> tuple[str, Made]:
        """The next object, good or not, and its kind's name."""
        rng = self._rng
        one = rng.choices(self._kinds, self._weights)[0]
        self._number += 1
        again = rng.random() < 0.15  # an object that is there already is written otherwise
        number = max(self._number - (rng.randint(1, 60) if again else 0), 1)
        one.names.own = number
        document = base(rng, one.plain, number)
        document["apiVersion"] = one.version
        if rng.random() < _WILD:
            names = Names(sure=False)
            wild = Maker(rng, names.hint).value(one.schema, ())
            return one.name, Made({**document, **_harmless(rng, one.kind, wild)}, ("wild",))
        body = {k: v for k, v in document.items() if k not in ("apiVersion", "kind", "metadata")}
        count = rng.choices((0, 1, 2, 3), (10, 65, 20, 5))[0]
        edges = tuple(one.deviations.put(body) for _ in range(count))
        return one.name, Made({**document, **body}, edges)

    def _ask(self, document: dict[str, Any]) -> dict[str, Any] | None:
        group, kind = document["apiVersion"], document["kind"]
        inside = "namespaces/default/" if KINDS[group, kind].NAMESPACED else ""
        root = f"apis/{group}" if "/" in group else f"api/{group}"
        plural = gateway_api.plural(kind.lower())
        status, text = self._post(
            f"/{root}/{inside}{plural}?dryRun=All&fieldValidation=Ignore",
            msgspec.json.encode(document),
        )
        if status != 201:
            return None
        found: dict[str, Any] = msgspec.json.decode(text)
        kept = ("name", "namespace", "labels", "annotations", "creationTimestamp")
        found["metadata"] = {k: v for k, v in found["metadata"].items() if k in kept}
        return found

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        for last in (False, True):
            held: http.client.HTTPSConnection | None = getattr(self._connections, "it", None)
            if held is None:
                trusting = ssl._create_unverified_context()
                held = http.client.HTTPSConnection(
                    "127.0.0.1", self._port, timeout=30, context=trusting
                )
                self._connections.it = held
                self._open.append(held)
            try:
                held.request("POST", path, body, headers)
                answer = held.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, OSError):
                held.close()
                self._connections.it = None
                if last:
                    raise
        raise AssertionError("unreachable")


def _harmless(rng: random.Random, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the API server says of built-in kinds in code, not in its schema: met, mostly."""
    spec = body.get("spec")
    if not isinstance(spec, dict):
        return body
    if kind == "Ingress":
        backends = [spec.get("defaultBackend")]
        for rule in spec.get("rules", ()):
            for one in (rule.get("http") or {}).get("paths", ()):
                backends.append(one.get("backend"))
                one["pathType"] = rng.choice(("Exact", "Prefix", "ImplementationSpecific"))
                if not str(one.get("path", "/")).startswith("/"):
                    one["path"] = "/" + str(one["path"])[:200]
        for backend in backends:
            if isinstance(backend, dict):
                backend.pop("resource", None)
                backend["service"] = {"name": rng.choice(SERVICES), "port": {"number": 80}}
    elif kind == "Service":
        keep = ("type", "loadBalancerSourceRanges", "loadBalancerIP", "sessionAffinity")
        body = {"spec": {k: v for k, v in spec.items() if k in keep}}
        numbers = rng.sample((1, 80, 443, 8080, 65535), rng.randint(1, 4))
        body["spec"]["ports"] = [
            {"name": f"p{n}", "port": n, "protocol": rng.choice(("TCP", "UDP", "TCP", "SCTP"))}
            for n in numbers
        ]
    return body
