"""A house with Gateways and Services of L4: manifests, servers behind them, plain sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from akocore import status, status_l4
from e2e.house import House

INFRA = """
apiVersion: akocore.io/v1alpha1
kind: Network
metadata: {name: uplink}
spec: {subnet: 127.10.16.0/24, vipRanges: [{begin: 127.10.16.227, end: 127.10.16.240}]}
---
apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: critical.infra}
spec: {network: {names: [uplink]}}
"""

CLASS = """
apiVersion: networking.x-k8s.io/v1alpha1
kind: GatewayClass
metadata:
  name: critical-gwc
spec:
  controller: ako.vmware.com/avi-lb
  parametersRef:
    group: ako.vmware.com
    kind: AviInfraSetting
    name: critical.infra
"""

_LISTENER = """
  - protocol: PROTOCOL
    port: PORT
    routes:
      selector:
       matchLabels:
        ako.vmware.com/gateway-namespace: default
        ako.vmware.com/gateway-name: NAME
      group: v1
      kind: Service"""


def gateway(
    *listeners: str, name: str = "avi-alb-gw", address: str = "", cls: str = "critical-gwc"
) -> str:
    """The walkthrough's Gateway; ``listeners`` as ``TCP/80``."""
    out = (
        "apiVersion: networking.x-k8s.io/v1alpha1\nkind: Gateway\nmetadata:\n"
        f"  name: {name}\n  namespace: default\nspec:\n  gatewayClassName: {cls}\n"
    )
    if address:
        out += f"  addresses:\n  - type: IPAddress\n    value: {address}\n"
    out += "  listeners:"
    for one in listeners:
        protocol, _, port = one.partition("/")
        text = _LISTENER.replace("PROTOCOL", protocol).replace("PORT", port)
        out += text.replace("NAME", name)
    return out + "\n"


def service(
    name: str,
    *ports: str,
    to: Iterable[tuple[str, int]],
    gateway: str = "",
    spec: str = "",
    annotations: str = "",
    kind: str = "LoadBalancer",
    namespace: str = "default",
) -> str:
    """A Service with its EndpointSlice.  ``ports`` as ``TCP/80``, all of them lead ``to``."""
    labels = (
        f"ako.vmware.com/gateway-namespace: default, ako.vmware.com/gateway-name: {gateway}"
        if gateway
        else ""
    )
    own = [one.partition("/") for one in ports]
    listed = ", ".join(f"{{name: {p.lower()}-{n}, protocol: {p}, port: {n}}}" for p, _, n in own)
    out = (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace},"
        f" labels: {{{labels}}}, annotations: {{{annotations}}}}}\n"
        f"spec: {{type: {kind}, ports: [{listed}]{', ' + spec if spec else ''}}}\n"
    )
    for i, (address, number) in enumerate(to):
        listed = ", ".join(
            f"{{name: {p.lower()}-{n}, protocol: {p}, port: {number}}}" for p, _, n in own
        )
        out += (
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
            f"metadata: {{name: {name}-{i}, namespace: {namespace},"
            f" labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\n"
            f"ports: [{listed}]\nendpoints: [{{addresses: [{address}]}}]\n"
        )
    return out


class Server(asyncio.DatagramProtocol):
    """Tells its name, on TCP to who connects and then echoes lines; on UDP before an echo."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.at = ("127.0.0.1", 0)

    async def start(self) -> Server:
        self._tcp = await asyncio.start_server(self._serve, *self.at)
        self.at = self._tcp.sockets[0].getsockname()
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.at)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{self.name}\n".encode())
        try:
            while line := await reader.readline():
                writer.write(line)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(f"{self.name}:".encode() + data, addr)

    def stop(self) -> None:
        self._tcp.close()
        self._udp.close()


class Ask(asyncio.DatagramProtocol):
    """Sends one datagram and waits for the answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


class L4House:
    """A `House` and what its Gateways and Services say."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.at = house.serve.reconciler
        self.write = house.write
        self.until = house.until
        self.servers: list[Server] = []

    async def server(self, name: str) -> Server:
        made = await Server(name).start()
        self.servers.append(made)
        return made

    def gateway(self, name: str = "avi-alb-gw") -> dict[str, Any]:
        """What a Gateway says; {} before it is known."""
        if f"default/{name}" not in self.at.l4.gateways:
            return {}
        said = status_l4.gateway(self.at, f"default/{name}")
        return said["status"] if said is not None else {}

    def vip(self, name: str = "avi-alb-gw") -> str:
        """The address of a Gateway once all of it is ready."""
        said = self.gateway(name)
        return said["addresses"][0]["value"] if said and said["ready"] else ""

    def externals(self, name: str, namespace: str = "default") -> list[str]:
        """EXTERNAL-IP of a Service: of one family, or of both."""
        said = status_l4.service(self.at, f"{namespace}/{name}")
        points = said["status"]["loadBalancer"]["ingress"] if said is not None else ()
        return [point["ip"] for point in points]

    def external(self, name: str, namespace: str = "default") -> str:
        return next(iter(self.externals(name, namespace)), "")

    def refused(self, kind: str, name: str) -> dict[str, str]:
        """Reason → what an object says with it."""
        found = status_l4.refusals(self.at, kind, name if "/" in name else f"default/{name}")
        return {r.reason: f"{r.field}: {r.remedy}" for r in found or ()}

    async def until_refused(self, kind: str, name: str, reason: str) -> str:
        await self.until(lambda: reason in self.refused(kind, name))
        return self.refused(kind, name)[reason]

    def virtual_services(self) -> dict[str, list[str]]:
        """The virtual services of L4 and their listeners."""
        return {
            one["metadata"]["name"]: one["spec"]["listeners"]
            for one in status.virtual_services(self.at)
            if one["spec"]["listeners"]
        }

    async def connect(
        self, address: str, port: int, source: str = ""
    ) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """Who answers, and the connection to it; "" when it is closed at once."""
        local = (source, 0) if source else None
        reader, writer = await asyncio.open_connection(
            address, port + self.house.offset, local_addr=local
        )
        try:
            line = await asyncio.wait_for(reader.readline(), 5)
        except ConnectionError:
            line = b""
        return line.decode().strip(), reader, writer

    async def who(self, address: str, port: int, source: str = "") -> str:
        """Who answers on TCP; "" when the connection is closed, "refused" when there is none."""
        try:
            name, _, writer = await self.connect(address, port, source)
        except ConnectionRefusedError:
            return "refused"
        writer.close()
        return name

    async def who_udp(
        self, address: str, port: int, source: str = "127.0.0.1", wait: float = 5
    ) -> str:
        """Who answers on UDP; "" when nobody does within ``wait`` seconds."""
        loop = asyncio.get_running_loop()
        transport, asked = await loop.create_datagram_endpoint(
            Ask, local_addr=(source, 0), remote_addr=(address, port + self.house.offset)
        )
        try:
            transport.sendto(b"hello")
            answer = await asyncio.wait_for(asyncio.shield(asked.answer), wait)
        except TimeoutError:
            return ""
        except ConnectionRefusedError:
            return "refused"
        finally:
            transport.close()
        name, _, rest = answer.decode().partition(":")
        assert rest == "hello"
        return name
