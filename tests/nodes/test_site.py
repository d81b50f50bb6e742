"""What a user sees of akocore on a true cluster: installed, upgraded, hurt, uninstalled.

In the order of this file; each test leaves the site as it found it, but for the last.
"""

from __future__ import annotations

import json
import time

import pytest

from akocore.kube.admission import CAPABILITIES
from nodes.outside import CLIENT, Load, until
from nodes.site import CHART, GROUP, HOME, L7, WHERE, Site

pytestmark = [pytest.mark.slow, pytest.mark.real]

KEPT = 100  # connections
KEPT_IDLE_S = 4  # a Service Engine keeps one to an endpoint for so long, though nobody needs it


def served_all_the_while(load: Load, site: Site) -> None:
    print(json.dumps(load.answers), *load.failures, sep="\n")
    assert load.answers.get("200"), "nothing was asked"
    assert not load.failures, site.why()


def scale(site: Site, number: int) -> None:
    told = f"akocore.io/scale-out={number}"
    site.nodes.kubectl("annotate", "--overwrite", "ais", "critical.infra", told)


def test_ingress_and_gateway_are_served_by_pods_that_came_with_them(site: Site) -> None:
    assert all(site.answers(*one) for one in site.hosts.items())
    assert len(set(site.hosts.values())) == 2

    def mirrored(kind: str, field: str) -> set[str]:
        return {one["status"].get(field, "") for one in site.nodes.get(kind)["items"]}

    until(lambda: mirrored("vs", "state") == {"up"}, why=site.why)
    until(lambda: mirrored("se", "bgpUp") == {"1/1"}, why=site.why)
    # Both through Service Engines: kube-proxy would send the client's packets on as they are.
    for host, address in site.hosts.items():
        assert '"from":"10.99.' not in site.nodes.ask(address, host, CLIENT)


def test_pods_have_no_more_rights_than_they_need(site: Site) -> None:
    for pod in site.pods("controller"):
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["securityContext"]["runAsUser"] == 65532
    for pod in site.pods("service-engine"):
        (container,) = pod["spec"]["containers"]
        added = container["securityContext"]["capabilities"]["add"]
        assert sorted(added) == sorted(CAPABILITIES)
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert not any("secret" in volume for volume in pod["spec"]["volumes"])
    account = f"--as=system:serviceaccount:{HOME}:akocore"
    for verb, may in (("list", "no"), ("get", "yes")):
        answer = site.nodes.kubectl("auth", "can-i", verb, "secrets", account, allow=(0, 1))
        assert answer.strip() == may


def test_helm_upgrade_costs_no_request(site: Site) -> None:
    before = dict(site.hosts)
    with site.load() as load:
        site.install(CHART, AKOSettings={"logLevel": "DEBUG"})
        site.rollout("deploy/akocore")
        site.install(CHART)
        site.rollout("deploy/akocore")
    served_all_the_while(load, site)
    assert {n: site.address(w) for n, w in WHERE.items()} == before


def test_a_rollout_of_controllers_costs_no_request(site: Site) -> None:
    with site.load() as load:
        site.nodes.kubectl("rollout", "restart", "deploy/akocore", "-n", HOME)
        site.rollout("deploy/akocore")
    served_all_the_while(load, site)


def test_another_certificate_authority_costs_no_request_and_no_connection(site: Site) -> None:
    def authority() -> str:
        secret = site.nodes.get("secret", "akocore-xds-ca", "-n", HOME)
        return str(secret["data"]["ca.crt"])

    def connected() -> bool:
        """Every Service Engine has a controller that runs now."""
        now = tuple(pod["metadata"]["name"] for pod in site.pods("controller"))
        engines = [one["status"] for one in site.nodes.get("se")["items"]]
        up = [one for one in engines if one.get("controller", "").startswith(now)]
        return len(up) == len(engines) == 2

    before = authority()
    pods = {pod["metadata"]["uid"] for pod in site.pods("service-engine")}
    with site.load(KEPT, L7) as load:
        site.nodes.kubectl("delete", "secret", "akocore-xds-ca", "-n", HOME)
        site.nodes.kubectl("rollout", "restart", "deploy/akocore", "-n", HOME)
        site.rollout("deploy/akocore")
        assert authority() != before
        # Their ConfigMap is replaced; kubelets take a minute to show them that.
        until(lambda: not connected(), why=site.why)
        until(connected, 200, why=site.why)
    served_all_the_while(load, site)
    assert {pod["metadata"]["uid"] for pod in site.pods("service-engine")} == pods


def test_a_leader_that_is_killed_costs_no_request(site: Site) -> None:
    leader = until(site.leader, why=site.why)
    with site.load() as load:
        site.nodes.kubectl(*("delete", "pod", leader, "-n", HOME, "--force", "--grace-period=0"))
        until(lambda: site.leader() not in ("", leader), why=site.why)
        site.rollout("deploy/akocore")
    served_all_the_while(load, site)


def test_a_rollout_of_service_engines_costs_no_request_and_no_connection(site: Site) -> None:
    with site.load(KEPT, L7) as load:
        site.nodes.kubectl("rollout", "restart", f"sts/{GROUP}", "-n", HOME)
        site.rollout(f"sts/{GROUP}")
        until(lambda: site.settled(2), why=site.why)
    served_all_the_while(load, site)


def test_scaling_out_and_in_costs_no_request_and_no_connection(site: Site) -> None:
    with site.load(KEPT) as load:
        scale(site, 4)
        until(lambda: site.settled(4), 90, why=site.why)
    served_all_the_while(load, site)
    # HTTP clients are told to open another connection; of TCP's, nobody can ask that.
    with site.load(KEPT, L7) as load:
        scale(site, 2)
        until(lambda: site.settled(2), 90, why=site.why)
    served_all_the_while(load, site)


def test_draining_a_node_costs_no_request_and_no_connection(site: Site) -> None:
    pods = site.pods("service-engine")
    node = pods[0]["spec"]["nodeName"]
    try:
        with site.load(KEPT, L7) as load:
            site.nodes.kubectl("drain", node, "--delete-emptydir-data", "--timeout=180s")
            until(lambda: site.settled(2), 90, why=site.why)
        served_all_the_while(load, site)
    finally:
        site.nodes.kubectl("uncordon", node)


def test_an_api_server_that_is_away_for_two_minutes_costs_no_request(site: Site) -> None:
    with site.load() as load:
        site.nodes.stop_api_server()
        time.sleep(120)
        site.nodes.start_api_server()
        # kubelets take their time to come back, and until then their pods are not ready.
        until(lambda: site.settled(2), 300, why=site.why)
    served_all_the_while(load, site)


def test_a_node_whose_power_is_cut_is_left_for_another(site: Site) -> None:
    pods = {p["spec"]["nodeName"]: p["status"]["podIP"] for p in site.pods("service-engine")}
    coredns = site.nodes.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
    taken = {pod["spec"]["nodeName"] for pod in coredns}
    node = min(pods, key=lambda name: name in taken)
    try:
        with site.load() as load:
            site.nodes.cut_power(int(node.removeprefix("n")))
            for address in site.hosts.values():
                until(lambda a=address: pods[node] not in site.outside.next_hops(a), why=site.why)  # type: ignore[misc]
            gone = time.time()
            # The cluster still has its endpoints for some 20 s; they are left out: silent.
            until(lambda: not site.ready_endpoints(node), 120, why=site.why)
        late = [f"{at - gone:.1f} s: {what}" for at, what in load.failures]
        print(json.dumps(load.answers), *late, sep="\n")
        # What was on that node fails, and what was asked on connections that were kept to it:
        # in the 4 s for which they are kept.
        assert all(at < gone + KEPT_IDLE_S for at, _ in load.failures), late
        with site.load() as load:
            until(lambda: site.settled(2), 240, why=site.why)
        served_all_the_while(load, site)
        assert node not in {pod["spec"]["nodeName"] for pod in site.pods("service-engine")}
    finally:
        with site.load() as load:
            site.nodes.start()
    served_all_the_while(load, site)


def test_without_handover_scaling_out_breaks_connections(site: Site) -> None:
    site.hand_over(False)
    try:
        with site.load(KEPT) as load:
            scale(site, 4)
            until(lambda: site.settled(4), 90, why=site.why)
        print(json.dumps(load.answers))
        assert load.answers["broken"] > KEPT / 4  # of those of both; half of them were moved
    finally:
        site.hand_over(True)
        scale(site, 2)
        until(lambda: site.settled(2), 90, why=site.why)


def test_kubectl_akocore_explains_what_a_cluster_has(site: Site) -> None:
    said = site.nodes.plugin("explain", "ingress/hello")
    assert "class    critical-ic, from the Ingress" in said
    assert site.hosts["hello.avi.iberia.local"] in said


def test_uninstalling_takes_back_what_was_written_and_made(site: Site) -> None:
    site.nodes.helm("uninstall", "akocore", "--namespace", HOME, "--wait", "--timeout", "120s")
    for what in WHERE.values():
        assert site.address(what) == ""
    for kind in ("vs", "se", "vsvips", "replicas"):
        assert site.nodes.get(kind)["items"] == []
    until(lambda: not site.pods("service-engine"), 90)
    for kind in ("secrets", "configmaps", "statefulsets", "poddisruptionbudgets"):
        left = {one["metadata"]["name"] for one in site.nodes.get(kind, "-n", HOME)["items"]}
        assert left <= {"kube-root-ca.crt"}
    for address in site.hosts.values():
        until(lambda a=address: not site.outside.next_hops(a))  # type: ignore[misc]
