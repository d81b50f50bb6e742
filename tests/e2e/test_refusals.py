"""What engines refuse, below what translation knows: told where it is, and not elsewhere."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from akocore import status_gateway
from akocore.kube.gateway_objects import GATEWAY
from akocore.translate.tls import Certificate
from e2e.house import House, house_over
from e2e.test_gateway_api import CLASS, SERVICE
from engines.refusals import BAD_CERTIFICATES, certificate_of

pytestmark = pytest.mark.real

TLS = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web}
spec:
  gatewayClassName: avi-lb
  listeners:
  - name: good
    port: 443
    protocol: HTTPS
    hostname: good.example.test
    tls: {certificateRefs: [{name: good}]}
  - name: odd
    port: 443
    protocol: HTTPS
    hostname: odd.example.test
    tls: {certificateRefs: [{name: odd}]}
"""


@pytest_asyncio.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with house_over(tmp_path) as one:
        one.write("class.yaml", CLASS)
        one.write("hello.yaml", SERVICE.replace("BACKEND", str(one.backend)))
        yield one


def _secret(name: str, found: Certificate) -> str:
    crt, key = (part.decode().replace("\n", "\n    ") for part in (found.chain, found.key))
    return (
        f"apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\n"
        f"stringData:\n  tls.crt: |\n    {crt}\n  tls.key: |\n    {key}\n"
    )


def _conditions(house: House, listener: str) -> dict[str, tuple[bool, str, str]]:
    said = status_gateway.gateway(house.serve.reconciler, "default/web")
    if said is None:
        return {}
    return {
        one.type: (one.true, one.reason, one.message)
        for found in said.listeners
        if found.name == listener
        for one in found.conditions
    }


async def _shown(vip: str, port: int, name: str) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(vip, port, ssl=context, server_hostname=name)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_certificate_that_engines_cannot_use_is_told_on_its_listener(house: House) -> None:
    house.write("good.yaml", _secret("good", certificate_of("good.example.test")))
    house.write("odd.yaml", _secret("odd", certificate_of("odd.example.test")))
    house.write("web.yaml", TLS)

    def programmed(listener: str) -> bool:
        return _conditions(house, listener).get("Programmed", (False,))[0]

    await house.until(lambda: programmed("good") and programmed("odd"))
    said = status_gateway.gateway(house.serve.reconciler, "default/web")
    assert said is not None
    vip = said.addresses[0]
    realiser = house.serve.reconciler.realiser
    realiser.certificates["default/odd"] = BAD_CERTIFICATES["another's key"]()
    realiser.push_secrets(["default/odd"])
    realiser.publish()
    await house.until(lambda: not programmed("odd"))
    for type_, reason in (("Programmed", "Invalid"), ("ResolvedRefs", "InvalidCertificateRef")):
        true, said_reason, message = _conditions(house, "odd")[type_]
        assert (true, said_reason) == (False, reason)
        assert message.startswith("spec.listeners[1].tls.certificateRefs: ")
        assert "Secret default/odd" in message
        assert message.endswith("Issue another certificate.")
        assert "\n" not in message
    assert programmed("good")
    assert await _shown(vip, 443 + house.offset, "good.example.test")
    refused = status_gateway.refusals(house.serve.reconciler, GATEWAY, "default/web") or []
    assert [(one.field, one.reason) for one in refused] == [
        ("spec.listeners[1].tls.certificateRefs", "InvalidCertificateRef")
    ]
    house.write("odd.yaml", _secret("odd", certificate_of("odd.example.test")))
    await house.until(lambda: programmed("odd"))
    assert await _shown(vip, 443 + house.offset, "odd.example.test")
