"""The walkthrough's shardSize section, on a true cluster: `kubectl get ingress` as it prints it."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest

from nodes.outside import CLIENT, Load, until
from nodes.site import Site
from nodes.workloads import ingress

pytestmark = [pytest.mark.slow, pytest.mark.real]

LARGE = [{1, 9, 14}, {2, 17}, {3, 16}, {4, 11, 19}, {5, 10, 18}, {6, 13}, {8, 15, 20}, {7, 12}]
MEDIUM = [{1, 5, 9, 10, 14, 18}, {2, 6, 13, 17}, {3, 7, 12, 16}, {4, 8, 11, 15, 19, 20}]
SMALL = [set(range(1, 21))]
_NAME, _IP = (f".status.loadBalancer.ingress[0].{field}" for field in ("hostname", "ip"))


def table(site: Site) -> dict[str, str]:
    """The walkthrough's command: each host and its address."""
    columns = f"-o=custom-columns=HOSTNAME:{_NAME},AVI-VS-IP:{_IP}"
    head, *rows = site.nodes.kubectl("get", "ingress", f"--sort-by={_IP}", columns).splitlines()
    assert head.split() == ["HOSTNAME", "AVI-VS-IP"]
    found = dict(row.split() for row in rows)
    return {name: address for name, address in found.items() if name.startswith("hello")}


def groups(site: Site) -> list[set[int]]:
    """The numbers of the twenty hosts that share an address."""
    found: dict[str, set[int]] = {}
    for name, address in table(site).items():
        number = name.partition(".")[0].removeprefix("hello")
        if number:  # and not the application of all tests
            found.setdefault(address, set()).add(int(number))
    return sorted(found.values(), key=min)


def apply(site: Site, numbers: Sequence[int], *verb: str) -> None:
    """The walkthrough's dummy_ingress.sh."""
    items = []
    for number in numbers:
        one = ingress(f"hello{number}", f"hello{number}.avi.iberia.local", "critical-ic")
        (rule,) = one["spec"]["rules"]
        rule["http"]["paths"][0]["backend"]["service"]["name"] = "hello"
        items.append(one)
    text = orjson.dumps({"apiVersion": "v1", "kind": "List", "items": items}).decode()
    site.nodes.kubectl(*(verb or ("apply",)), "-f", "-", stdin=text)


def size(site: Site, name: str) -> None:
    patch = orjson.dumps({"spec": {"l7Settings": {"shardSize": name}}}).decode()
    site.nodes.kubectl("patch", "ais", "critical.infra", "--type=merge", "-p", patch)


def all_answer(site: Site) -> bool:
    return all('"pod"' in site.nodes.ask(at, host, CLIENT) for host, at in table(site).items())


def virtual_services(site: Site) -> set[str]:
    """Their VIPs."""
    return {one["status"].get("vip", "") for one in site.nodes.get("vs")["items"]}


def test_twenty_hosts_are_grouped_live_by_every_shard_size(site: Site) -> None:
    try:
        apply(site, range(1, 21))
        until(lambda: groups(site) == sorted(LARGE, key=min), why=site.why)
        until(lambda: all_answer(site), why=site.why)
        for name, wanted in (("MEDIUM", MEDIUM), ("SMALL", SMALL)):
            with Load(table(site)) as load:
                size(site, name)
                until(lambda w=wanted: groups(site) == sorted(w, key=min), why=site.why)  # type: ignore[misc]
            assert load.answers.get("200"), "nothing was asked"
            assert not load.failures
            until(lambda: all_answer(site), why=site.why)
        apply(site, range(1, 21), "delete")
        size(site, "DEDICATED")
        apply(site, range(1, 6))
        until(lambda: groups(site) == [{n} for n in range(1, 6)], why=site.why)
        until(lambda: all_answer(site), why=site.why)
    finally:
        apply(site, range(1, 21), "delete", "--ignore-not-found")
        size(site, "LARGE")
        # Their addresses may be others now: those of before are free for whoever comes first.
        until(lambda: len(virtual_services(site)) == len(set(site.hosts.values())), why=site.why)
        site.locate()
