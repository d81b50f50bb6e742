"""Which made-up objects there can be: a real API server is asked, by a dry run.

What it answers is what akocore would be given: with defaults, and judged by schema and by CEL.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import urllib3

from akocore.kube.objects import KINDS
from cluster import gateway_api
from cluster.control_plane import ADMIN, ControlPlane
from fuzz import names
from fuzz.generate import Maker
from fuzz.schemas import RELEASES, definitions, kinds, own_definitions

__all__ = ["Judge"]

_OFTEN: Final = {"HTTPRoute": 8, "GRPCRoute": 3, "Gateway": 2, "Ingress": 4, "EndpointSlice": 2}


class Judge:
    """Makes objects up and asks a real API server about each.

    ``asked`` and ``good``: how many, by kind.
    """

    def __init__(self, home: Path, seed: int, release: str) -> None:
        self.asked: dict[str, int] = {}
        self.good: dict[str, int] = {}
        self._rng = random.Random(seed)
        self._plane = ControlPlane(home)
        self._release = release
        others = [one for one in RELEASES if one != release]
        self._kinds = {
            name: one
            for name, one in kinds().items()
            if not any(name.endswith(f" {other}") for other in others)
        }
        self._weights = [_OFTEN.get(name.partition(" ")[0], 1) for name in self._kinds]
        urllib3.disable_warnings()
        self._http = urllib3.PoolManager(
            4, cert_reqs="CERT_NONE", headers={"Authorization": f"Bearer {ADMIN}"}
        )
        self._number = count()

    def __enter__(self) -> Judge:
        self._plane.start()
        texts = "\n---\n".join(definitions(self._release))
        self._plane.kubectl("apply", "--server-side", "-f", "-", stdin=texts)
        self._plane.kubectl("apply", "--server-side", "-f", "-", stdin=own_definitions())
        self._plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        return self

    def __exit__(self, *_: object) -> None:
        self._plane.stop()

    def objects(self) -> Iterator[dict[str, Any]]:
        """Good objects, without end."""
        with ThreadPoolExecutor(4) as pool:
            while True:
                made = [self._make() for _ in range(64)]
                for name, found in pool.map(self._ask, made):
                    self.asked[name] = self.asked.get(name, 0) + 1
                    if found is not None:
                        self.good[name] = self.good.get(name, 0) + 1
                        yield found

    def _make(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        name = rng.choices(list(self._kinds), self._weights)[0]
        (version, kind), schema = self._kinds[name]
        maker = Maker(rng, names.hint)
        own = f"x{next(self._number) % 400}"
        meta: dict[str, Any] = {"name": own, "namespace": "default"}
        if kind == "EndpointSlice":
            meta["labels"] = {"kubernetes.io/service-name": rng.choice(names.SERVICES[1:])}
        if kind == "Secret" and rng.random() < 0.5:
            meta["name"] = "cert"
        if kind == "Service" and rng.random() < 0.3:
            meta["name"] = rng.choice(names.SERVICES[1:])
        body = maker.value(schema, (kind,))
        names.fit(rng, kind, body)
        return name, {"apiVersion": version, "kind": kind, "metadata": meta, **body}

    def _ask(self, made: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any] | None]:
        name, document = made
        group = document["apiVersion"]
        struct = KINDS[group, document["kind"]]
        plural = gateway_api.plural(document["kind"].lower())
        root = f"apis/{group}" if "/" in group else f"api/{group}"
        inside = "namespaces/default/" if struct.NAMESPACED else ""
        if not struct.NAMESPACED:
            document["metadata"].pop("namespace")
        path = f"/{root}/{inside}{plural}?dryRun=All&fieldValidation=Ignore"
        url = f"https://127.0.0.1:{self._plane.port}{path}"
        answer = self._http.request(
            "POST",
            url,
            body=json.dumps(document),
            headers={"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"},
        )
        if answer.status != 201:
            return name, None
        found: dict[str, Any] = json.loads(answer.data)
        found["metadata"] = {
            k: v
            for k, v in found["metadata"].items()
            if k in ("name", "namespace", "labels", "annotations", "creationTimestamp")
        }
        return name, found


def some(judge: Judge, number: int) -> list[dict[str, Any]]:
    """So many good objects."""
    return list(islice(judge.objects(), number))
