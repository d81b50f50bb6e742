"""Whose a host is when Ingresses of several namespaces name it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from akocore import reconcile, status
from akocore.config import Config, FqdnReusePolicy, L7Config
from akocore.engines.envoy.ads import AdsServer
from akocore.kube.objects import Change, Ingress, decode
from akocore.place.state import State
from akocore.reconcile import Reconciler
from akocore.translate.ingress import host_model

HOST = "shop.example.test"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def ingress(
    key: str, *hosts: str, day: int = 1, path: str = "/", tls: str = "", default: bool = False
) -> Change:
    namespace, _, name = key.partition("/")
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    body = {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "creationTimestamp": f"2026-01-{day:02}T00:00:00Z",
        },
        "spec": {
            "ingressClassName": "avi-lb",
            "rules": [
                {
                    "host": host,
                    "http": {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]},
                }
                for host in hosts
            ],
            **({"tls": [{"hosts": list(hosts), "secretName": tls}]} if tls else {}),
            **({"defaultBackend": backend} if default else {}),
        },
    }
    return Change("Ingress", key, decode(body, Ingress))


def gone(key: str) -> Change:
    return Change("Ingress", key, None)


class Bench:
    """A reconciler over one state directory; `restart` begins anew with the given objects."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.policy: FqdnReusePolicy | None = None
        self.begin()

    def begin(self) -> None:
        self.state = State(self._directory)
        ads = AdsServer(self._directory / "xds.sock", lambda _group: None)
        config = Config(l7=L7Config(fqdn_reuse_policy=self.policy))
        self.at = Reconciler(config, self.state, ads, now=lambda: NOW)

    def restart(self, *changes: Change) -> None:
        self.state.commit(self.state.take())
        self.state.close()
        self.begin()
        self.at.apply(changes)
        self.at.forget_absent()

    def served(self) -> list[str]:
        """The Ingresses that the host's paths are of, by name."""
        placed = self.at.hosts.get(HOST)
        return [r.pool.name.rpartition("-")[2] for r in placed.model.routes] if placed else []

    def reasons(self, key: str) -> list[str]:
        return [r.reason for r in status.ingress_refusals(self.at, key) if not r.warning]

    def claimed(self, key: str) -> bool:
        return "HostClaimed" in self.reasons(key)

    def joined(self) -> list[tuple[str, str, str]]:
        found, self.at.claims.joined = self.at.claims.joined, []
        return [(one.host, one.owner, one.guest) for one in found]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.state.close()


@pytest.fixture
def shared(bench: Bench) -> Bench:
    """Namespaces may share hosts."""
    bench.policy = FqdnReusePolicy.INTER_NAMESPACE_ALLOWED
    bench.restart()
    return bench


@pytest.mark.parametrize("first", ["web", "grab"])
def test_a_host_is_the_older_namespaces_alone_whoever_is_seen_first(
    bench: Bench, first: str
) -> None:
    both = {
        "web": ingress("shop/web", HOST),
        "grab": ingress("evil/grab", HOST, day=2, path="/login", tls="cert"),
    }
    bench.at.apply([both.pop(first)])
    bench.at.apply(both.values())
    assert bench.served() == ["web"]
    model = bench.at.hosts[HOST].model
    assert (model.certificate, model.redirect) == ("", False)
    assert not bench.claimed("shop/web")
    (no,) = [r for r in status.ingress_refusals(bench.at, "evil/grab") if r.reason == "HostClaimed"]
    assert no.field == "spec.rules[0].host"
    assert "namespace shop" in no.remedy
    assert "shop/web" in no.remedy
    assert "InterNamespaceAllowed" in no.remedy
    assert bench.joined() == []


def test_who_is_refused_a_host_gets_it_when_its_owner_is_gone_and_says_so(bench: Bench) -> None:
    bench.at.apply([ingress("shop/web", HOST), ingress("evil/grab", HOST, day=2, tls="cert")])
    assert "evil/grab" in bench.at.apply([gone("shop/web")])
    assert bench.served() == ["grab"]
    assert not bench.claimed("evil/grab")
    assert "evil/grab" in bench.at.apply([ingress("shop/web", HOST)])
    assert bench.claimed("evil/grab")


def test_ingresses_of_one_namespace_share_a_host_and_one_brings_the_certificate(
    bench: Bench,
) -> None:
    bench.at.apply(
        [
            ingress("shop/web", HOST),
            ingress("shop/pay", HOST, day=2, path="/pay", tls="cert"),
            ingress("shop/solver", HOST, day=3, path="/.well-known/acme-challenge/x"),
        ]
    )
    assert len(bench.served()) == 3
    assert bench.at.hosts[HOST].model.certificate == "shop/cert"
    assert not any(bench.claimed(f"shop/{name}") for name in ("web", "pay", "solver"))
    assert bench.joined() == []


def test_a_more_specific_host_is_another_host(bench: Bench) -> None:
    bench.at.apply([ingress("shop/all", "*.example.test"), ingress("blog/news", HOST, day=2)])
    assert not bench.claimed("blog/news")
    assert HOST in bench.at.hosts


def test_any_host_is_of_one_namespace_and_a_hosts_own_default_is_served(bench: Bench) -> None:
    bench.at.apply(
        [ingress("a/rest", default=True), ingress("b/web", HOST, day=2, path="/x", default=True)]
    )
    (no,) = [r for r in status.ingress_refusals(bench.at, "b/web") if r.reason == "HostClaimed"]
    assert no.field == "spec.defaultBackend"
    assert len(bench.served()) == 2


def test_who_joins_a_shared_host_brings_paths_and_no_certificate_and_both_hear_of_it(
    shared: Bench,
) -> None:
    shared.at.apply([ingress("shop/web", HOST)])
    shared.at.apply([ingress("blog/news", HOST, day=2, path="/blog", tls="cert")])
    assert shared.served() == ["news", "web"]
    model = shared.at.hosts[HOST].model
    assert (model.certificate, model.redirect) == ("", False)
    assert "CertificateConflict" in shared.reasons("blog/news")
    assert "CertificateConflict" not in shared.reasons("shop/web")
    assert shared.joined() == [(HOST, "shop/web", "blog/news")]
    shared.at.apply([ingress("blog/news", HOST, day=2, path="/news")])
    assert shared.joined() == []


def test_a_shared_host_has_its_owners_certificate_though_another_has_one_too(
    shared: Bench,
) -> None:
    shared.at.apply(
        [
            ingress("shop/web", HOST, tls="good"),
            ingress("blog/news", HOST, day=2, path="/blog", tls="cert"),
        ]
    )
    assert shared.at.hosts[HOST].model.certificate == "shop/good"
    shared.at.apply([gone("shop/web")])
    assert shared.at.hosts[HOST].model.certificate == "blog/cert"


def test_a_guest_brings_no_certificate_though_akocore_fails_over_the_owner(
    shared: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(
        host: str, setting: str, dedicated: bool, mine: Iterable[Ingress], *rest: Any
    ) -> Any:
        if any(one.metadata.namespace == "shop" for one in mine):
            raise ZeroDivisionError
        return host_model(host, setting, dedicated, mine, *rest)

    monkeypatch.setattr(reconcile, "host_model", faulty)
    shared.at.apply([ingress("shop/web", HOST), ingress("blog/news", HOST, day=2, tls="cert")])
    assert shared.served() == ["news"]
    assert shared.at.hosts[HOST].model.certificate == ""


@pytest.mark.parametrize("policy", [None, FqdnReusePolicy.INTER_NAMESPACE_ALLOWED])
def test_an_old_ingress_that_names_a_host_from_now_on_came_after_who_had_it(
    bench: Bench, policy: FqdnReusePolicy | None
) -> None:
    bench.policy = policy
    bench.restart()
    old = ingress("evil/old", "evil.example.test", day=1)
    edited = ingress("evil/old", "evil.example.test", HOST, day=1, tls="cert")
    web = ingress("shop/web", HOST, day=2)
    bench.at.apply([old, web])
    bench.at.apply([edited])
    for _ in range(2):
        assert "web" in bench.served()
        assert bench.at.hosts[HOST].model.certificate == ""
        assert not bench.reasons("shop/web") or not bench.claimed("shop/web")
        assert bench.claimed("evil/old") == (policy is None)
        bench.restart(edited, web)  # the same after a restart
    bench.at.apply([old])
    bench.at.apply([gone("shop/web"), edited])
    assert bench.at.hosts[HOST].model.certificate == "evil/cert"
    bench.at.apply([ingress("shop/web", HOST, day=3)])
    assert bench.at.hosts[HOST].model.certificate == "evil/cert"


def test_what_is_remembered_of_a_claim_goes_with_it(bench: Bench) -> None:
    bench.at.apply([ingress("evil/old", "evil.example.test"), ingress("shop/web", HOST, day=2)])
    bench.at.apply([ingress("evil/old", HOST)])
    assert any(key.startswith("Claim_") for key in bench.state.room("accepted"))
    bench.at.apply([ingress("evil/old", "evil.example.test")])
    assert not any(key.startswith("Claim_") for key in bench.state.room("accepted"))
    bench.at.apply([ingress("evil/old", HOST)])
    bench.restart(ingress("shop/web", HOST, day=2))
    assert not any(key.startswith("Claim_") for key in bench.state.room("accepted"))


def test_no_more_claims_are_remembered_than_a_config_map_can_hold(bench: Bench) -> None:
    hosts = [f"h{i}.example.test" for i in range(2100)]
    bench.at.apply([ingress("evil/old", "evil.example.test"), ingress("shop/web", *hosts, day=2)])
    bench.at.apply([ingress("evil/old", *hosts)])
    facts = {k: v for k, v in bench.state.room("accepted").items() if k.startswith("Claim_")}
    assert len(facts) == 2000
    assert sum(len(k) + len(v) for k, v in facts.items()) < 200_000
