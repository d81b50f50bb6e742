"""The same requests have the same answers from Ingresses and from what they are migrated to."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio
import yaml
from aiohttp import web
from yarl import URL

from akocore import status_gateway
from akocore.kube.objects import KINDS, Change, decode
from akocore.store import Store
from akocore.translate.migration.ingress import migrate
from e2e.house import CLASS, House, house_over
from engines.authority import Authority

INGRESSES = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  ingressClassName: critical-ic
  rules:
  - host: a.test
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: one, port: {name: http}}}}
      - {path: /exact, pathType: Exact, backend: {service: {name: two, port: {number: 80}}}}
      - {path: /deep/er, pathType: Prefix, backend: {service: {name: two, port: {number: 80}}}}
      - path: /any/
        pathType: ImplementationSpecific
        backend: {service: {name: two, port: {number: 80}}}
  - host: b.test
    http:
      paths:
      - {path: /only, pathType: Prefix, backend: {service: {name: two, port: {number: 80}}}}
  - host: "*.w.test"
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: one, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: late, namespace: default, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  ingressClassName: critical-ic
  rules:
  - host: a.test
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: two, port: {number: 80}}}}
      - {path: /late, pathType: Prefix, backend: {service: {name: two, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: safe, namespace: bank}
spec:
  ingressClassName: critical-ic
  tls: [{hosts: [s.test], secretName: s-cert}]
  rules:
  - host: s.test
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: pay, port: {number: 80}}}}
"""

APP = """
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: SPACE}
spec: {ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME, namespace: SPACE, labels: {kubernetes.io/service-name: NAME}}
addressType: IPv4
ports: [{name: http, port: BACKEND}]
endpoints: [{addresses: [127.0.0.1]}]
"""

ASKED = [
    ("http", "a.test", path)
    for path in ("/", "/x?y=1", "/exact", "/exact/", "/deep", "/deep/er", "/deep/er/x", "/deep/err")
] + [
    ("http", "a.test", "/any"),
    ("http", "a.test", "/any/x"),
    ("http", "a.test", "/anyx"),
    ("http", "a.test", "/late/x"),
    ("http", "A.Test", "/late"),
    ("http", "b.test", "/only"),
    ("http", "b.test", "/"),
    ("http", "x.w.test", "/"),
    ("http", "w.test", "/"),
    ("http", "other.test", "/"),
    ("http", "s.test", "/p?q=1"),
    ("https", "s.test", "/p?q=1"),
]
DIALECTS: Any = {"critical-ic": "avi"}


@pytest_asyncio.fixture
async def shop(tmp_path: Path) -> AsyncIterator[House]:
    """A house with the Services of `INGRESSES`, each with a backend that says its name."""
    runners = []
    pair = Authority(tmp_path / "pki").issue("s", dns=["s.test"])
    async with house_over(tmp_path) as house:
        for space, name in (("default", "one"), ("default", "two"), ("bank", "pay")):
            text = f"{space}/{name}"

            async def answer(request: web.BaseRequest, text: str = text) -> web.Response:
                return web.Response(text=f"{text} {request.path_qs}")

            runner = web.ServerRunner(web.Server(answer))
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            runners.append(runner)
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
            app = APP.replace("NAME", name).replace("SPACE", space).replace("BACKEND", str(port))
            house.write(f"{name}.yaml", app)
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s-cert", "namespace": "bank"},
            "type": "kubernetes.io/tls",
            "data": {
                "tls.crt": base64.b64encode(pair.certificate.read_bytes()).decode(),
                "tls.key": base64.b64encode(pair.key.read_bytes()).decode(),
            },
        }
        house.write("secret.yaml", yaml.safe_dump(secret))
        house.write("class.yaml", CLASS.replace("SIZE", "SMALL"))
        house.write("spaces.yaml", "".join(
            f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {one},"
            f" labels: {{kubernetes.io/metadata.name: {one}}}}}\n---\n"
            for one in ("default", "bank")
        ))  # fmt: skip
        yield house
    for runner in runners:
        await runner.cleanup()


async def answers(house: House, address: str) -> list[tuple[str, str, str, int, str, str]]:
    """What every request of `ASKED` comes to: status, body, where it is sent to."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = []
    for scheme, host, path in ASKED:
        port = (443 if scheme == "https" else 80) + house.offset
        async with house.client.get(
            URL(f"{scheme}://{address}:{port}{path}", encoded=True),
            headers={"Host": host},
            allow_redirects=False,
            ssl=context,
            server_hostname=host if scheme == "https" else None,
        ) as got:
            body = await got.text() if got.status == 200 else ""
            out.append((scheme, host, path, got.status, body, got.headers.get("location", "")))
    return out


def manifests(text: str, addresses: dict[str, str]) -> Store:
    """As a cluster has them: Ingresses with their status."""
    store = Store()
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        if document["kind"] == "Ingress":
            hosts = [rule["host"] for rule in document["spec"]["rules"]]
            points = [{"hostname": host, "ip": addresses[host]} for host in hosts]
            document["status"] = {"loadBalancer": {"ingress": points}}
        kind = KINDS[document.pop("apiVersion"), document.pop("kind")]
        obj = decode(document, kind)
        store.apply(Change(kind.KIND, obj.key, obj))
    return store


async def test_the_same_requests_have_the_same_answers_at_the_same_vip(shop: House) -> None:
    shop.write("ingresses.yaml", INGRESSES)
    await shop.until(lambda: {"a.test", "b.test", "*.w.test", "s.test"} <= set(shop.addresses()))
    found = shop.addresses()
    (address,) = set(found.values())
    await shop.until_status(address, "a.test", 200)
    before = await answers(shop, address)
    assert {one[3] for one in before} == {200, 302, 404}

    services = "---".join((shop.directory / f"{n}.yaml").read_text() for n in ("one", "two", "pay"))
    classes = (shop.directory / "class.yaml").read_text()
    store = manifests(f"{INGRESSES}---{services}---{classes}", found)
    moved = migrate(store, DIALECTS, gateway_class="akocore")
    assert [v for v in moved.verdicts if v.verdict == "untranslatable"] == []
    shop.write("gateways.yaml", yaml.safe_dump_all(moved.manifests))
    (gateway,) = [one for one in moved.manifests if one["kind"] == "Gateway"]
    key = f"{gateway['metadata']['namespace']}/{gateway['metadata']['name']}"

    def taken_over() -> bool:
        said = status_gateway.gateway(shop.serve.reconciler, key)
        return said is not None and list(said.addresses) == [address]

    await shop.until(lambda: status_gateway.gateway(shop.serve.reconciler, key) is not None)
    assert not taken_over()  # the Ingresses have the address
    said: Counter[str] = Counter()
    done = asyncio.Event()
    asking = [asyncio.create_task(ask(shop, address, said, done, keep=k)) for k in (False, True)]
    await asyncio.sleep(0.3)
    (shop.directory / "ingresses.yaml").unlink()
    await shop.until(taken_over, 20)
    await shop.until_status(address, "a.test", 200)
    assert await answers(shop, address) == before
    await asyncio.sleep(shop.serve.engines.drain_s + 2)  # what is left of the former is gone, too
    done.set()
    await asyncio.gather(*asking)
    assert await answers(shop, address) == before
    assert said.keys() == {"200 default/one /"}


async def ask(
    house: House, address: str, said: Counter[str], done: asyncio.Event, *, keep: bool
) -> None:
    """Ask for a.test all the while, on connections of their own, or on one that is kept."""
    url = f"http://{address}:{80 + house.offset}/"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=not keep)) as http:
        while not done.is_set():
            try:
                async with http.get(url, headers={"Host": "a.test"}) as got:
                    said[f"{got.status} {await got.text()}"] += 1
            except aiohttp.ClientError as err:
                said[type(err).__name__] += 1
            await asyncio.sleep(0.005)
