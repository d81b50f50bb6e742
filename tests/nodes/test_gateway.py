"""The walkthrough's Gateway section, line by line: its objects, its commands, its pods."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from nodes.outside import CLIENT, until
from nodes.site import Site
from nodes.workloads import IMAGE, backend

pytestmark = [pytest.mark.slow, pytest.mark.real]

GATEWAY_CLASS = """
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
  - protocol: TCP
    port: {port}
    routes:
      selector:
       matchLabels:
        ako.vmware.com/gateway-namespace: default
        ako.vmware.com/gateway-name: avi-alb-gw
      group: v1
      kind: Service"""
_GATEWAY = """
apiVersion: networking.x-k8s.io/v1alpha1
kind: Gateway
metadata:
  name: avi-alb-gw
  namespace: default
spec:
  gatewayClassName: critical-gwc{addresses}
  listeners:{listeners}
"""
_STATIC = """
  addresses:
  - type: IPAddress
    value: 10.10.16.232"""
SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: {name}
  labels:
    ako.vmware.com/gateway-namespace: default
    ako.vmware.com/gateway-name: avi-alb-gw
spec:
  type: LoadBalancer
  ports:
  - port: {port}
    targetPort: 8080
  selector:
    app: hello
"""
DEPLOYMENT = f"""
apiVersion: apps/v1
kind: Deployment
metadata:
  name: hello
spec:
  replicas: 3
  selector:
    matchLabels:
      app: hello
  template:
    metadata:
      labels:
        app: hello
    spec:
      containers:
      - name: echo
        image: {IMAGE}
        ports:
        - containerPort: 8080
        env:
        - name: MESSAGE
          value: "MESSAGE: Running in port 8080!!"
"""


def gateway(*ports: int, addresses: str = "") -> str:
    listeners = "".join(_LISTENER.format(port=port) for port in ports)
    return _GATEWAY.format(addresses=addresses, listeners=listeners)


@pytest.fixture
def story(site: Site) -> Iterator[Site]:
    yield site
    site.nodes.kubectl("delete", "gateway.networking.x-k8s.io/avi-alb-gw", "--ignore-not-found")
    site.nodes.kubectl("delete", "service", "hello8080", "--ignore-not-found")
    site.nodes.kubectl("delete", "service", "hello")
    site.nodes.apply(*backend("hello", 3))  # as it was before
    site.nodes.kubectl("rollout", "status", "deploy/hello", "--timeout=60s")
    site.locate()


def addresses(site: Site) -> list[str]:
    """What the Gateway says that it has."""
    found = site.nodes.get("gateway.networking.x-k8s.io/avi-alb-gw")
    return [one["value"] for one in found.get("status", {}).get("addresses", ())]


def external_ips(site: Site) -> dict[str, str]:
    """Of `kubectl get services`: NAME and EXTERNAL-IP of those of type LoadBalancer."""
    head, *rows = (row.split() for row in site.nodes.kubectl("get", "services").splitlines())
    assert head[:4] == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP"]
    return {r[0]: r[3] for r in rows if r[1] == "LoadBalancer" and r[0] != "hello-l4"}


def answers(site: Site, address: str, port: int) -> bool:
    return "Running in port 8080!!" in site.nodes.ask(f"{address}:{port}", "any.test", CLIENT)


def announced(site: Site, address: str) -> bool:
    return site.outside.next_hops(address) == set(site.engines().values())


def test_the_gateway_section_line_by_line(story: Site) -> None:
    site, apply = story, story.nodes.apply
    apply(GATEWAY_CLASS)
    apply(gateway(80))
    (vip,) = until(lambda: addresses(site), why=site.why)  # before there is any Service
    vs = "my-cluster--default-avi-alb-gw"
    assert site.nodes.get("vs", vs)["status"]["vip"] == vip

    apply(SERVICE.format(name="hello", port=80), DEPLOYMENT)
    site.nodes.kubectl("rollout", "status", "deploy/hello", "--timeout=60s")
    until(lambda: external_ips(site) == {"hello": vip}, why=site.why)
    until(lambda: announced(site, vip), why=site.why)
    until(lambda: answers(site, vip, 80), why=site.why)

    apply(gateway(8080, 80))
    apply(SERVICE.format(name="hello8080", port=8080))
    until(lambda: external_ips(site) == {"hello": vip, "hello8080": vip}, why=site.why)
    until(lambda: answers(site, vip, 8080) and answers(site, vip, 80), why=site.why)
    # Where AKO says "1970-01-01" and "Waiting for controller" of a Gateway that serves.
    said = site.nodes.kubectl("describe", "gateway.networking.x-k8s.io/avi-alb-gw")
    assert re.search(rf"Addresses:\n +Type: +IPAddress\n +Value: +{re.escape(vip)}\n", said), said
    assert "1970" not in said
    assert "Waiting for controller" not in said
    assert re.search(r"Status: +True\n +Type: +Scheduled\n", said), said
    ready = r"Reason: +Ready\n +Status: +True\n +Type: +Ready\n"
    for port in (8080, 80):
        assert re.search(rf"{ready} +Port: +{port}\n +Protocol: +TCP\n", said), said

    apply(gateway(8080, 80, addresses=_STATIC))  # live, which AKO does not
    asked = "10.10.16.232"
    until(lambda: external_ips(site) == {"hello": asked, "hello8080": asked}, why=site.why)
    until(lambda: announced(site, asked), why=site.why)
    assert answers(site, asked, 8080)
    assert answers(site, asked, 80)
    until(lambda: not site.outside.next_hops(vip), why=site.why)

    # And as the walkthrough does it.
    site.nodes.kubectl("delete", "gateway.networking.x-k8s.io/avi-alb-gw")
    pending = {"hello": "<pending>", "hello8080": "<pending>"}
    until(lambda: external_ips(site) == pending, why=site.why)
    until(lambda: not site.outside.next_hops(asked), why=site.why)
    apply(gateway(8080, 80, addresses=_STATIC))
    until(lambda: addresses(site) == [asked], why=site.why)
    until(lambda: external_ips(site) == {"hello": asked, "hello8080": asked}, why=site.why)
    until(lambda: announced(site, asked), why=site.why)
    assert answers(site, asked, 8080)
    assert answers(site, asked, 80)
