"""What holds for every Ingress, however odd: it never raises, and a refusal says what to do."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akocore.kube.objects import (
    Change,
    HTTPIngressPath,
    HTTPIngressRuleValue,
    Ingress,
    IngressBackend,
    IngressRule,
    IngressServiceBackend,
    IngressSpec,
    IngressTLS,
    LabelledMeta,
    ObjectMeta,
    Service,
    ServiceBackendPort,
    ServicePort,
    ServiceSpec,
    TypedLocalObjectReference,
)
from akocore.model import HostModel, Refusal, Route
from akocore.store import Store
from akocore.translate.ingress import host_model
from akocore.translate.names import Names

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ODD = st.text(max_size=6)
HOSTS = st.sampled_from(["", "a.test", "b.test", "*.test", "A.test", "a.test:80", "::1"]) | ODD
PATHS = st.sampled_from(["", "/", "/a", "/a/", "/a/b", "/ab", "a", "//", "/a?b"]) | ODD
TYPES = st.sampled_from(["Exact", "Prefix", "ImplementationSpecific", "Regex"])
PORTS = st.builds(
    ServiceBackendPort, name=st.sampled_from(["", "http", "x"]), number=st.sampled_from([0, 80, 9])
)
BACKENDS = st.builds(
    IngressBackend,
    service=st.none()
    | st.builds(IngressServiceBackend, name=st.sampled_from(["cart", "gone", ""]), port=PORTS),
    resource=st.none() | st.just(TypedLocalObjectReference(kind="Bucket", name="x")),
)
HTTP = st.builds(
    HTTPIngressRuleValue,
    paths=st.lists(
        st.builds(HTTPIngressPath, backend=BACKENDS, path=PATHS, path_type=TYPES), max_size=4
    ).map(tuple),
)
SPECS = st.builds(
    IngressSpec,
    ingress_class_name=st.just("avi-lb"),
    default_backend=st.none() | BACKENDS,
    tls=st.lists(
        st.builds(
            IngressTLS,
            hosts=st.lists(HOSTS, max_size=3).map(tuple),
            secret_name=st.sampled_from(["", "one", "two"]),
        ),
        max_size=3,
    ).map(tuple),
    rules=st.lists(st.builds(IngressRule, host=HOSTS, http=st.none() | HTTP), max_size=4).map(
        tuple
    ),
)
FIELD = re.compile(
    r"spec\.(rules(\[\d+\](\.host|\.http(\.paths\[\d+\]"
    r"\.(path|pathType|backend(\.service\.(name|port))?))?)?)?"
    r"|defaultBackend(\.service\.(name|port))?|tls\[\d+\]\.(secretName|hosts\[\d+\]))\Z"
)


def translated(specs: list[IngressSpec]) -> tuple[dict[str, HostModel], list[Refusal]]:
    store = Store()
    ports = (ServicePort(port=80, name="http"), ServicePort(port=81))
    cart = Service(
        metadata=LabelledMeta(name="cart", namespace="shop"), spec=ServiceSpec(ports=ports)
    )
    store.apply(Change("Service", cart.key, cart))
    no: list[Refusal] = []
    ingresses = [
        Ingress(metadata=ObjectMeta(name=f"web-{i}", namespace="shop"), spec=spec)
        for i, spec in enumerate(specs)
    ]
    for ingress in ingresses:
        store.apply(Change("Ingress", ingress.key, ingress))
        no += store.view(ingress.key).refusals
    models: dict[str, HostModel] = {}
    for host in sorted({host for i in ingresses for host in store.hosts_of(i.key)}):
        mine = [i for i in ingresses if host in store.hosts_of(i.key)]
        models[host], found = host_model(host, "", False, mine, store, Names("cluster"))
        assert set(found) <= {i.key for i in mine}
        for key, refusals in found.items():
            assert {refusal.object for refusal in refusals} == {f"Ingress/{key}"}
            no += refusals
    return models, no


@CALM
@given(st.lists(SPECS, max_size=3))
def test_every_refusal_names_a_field_a_reason_and_a_remedy(specs: list[IngressSpec]) -> None:
    _, no = translated(specs)
    for refusal in no:
        assert FIELD.match(refusal.field), refusal
        assert re.fullmatch(r"[A-Z][A-Za-z]+", refusal.reason), refusal
        assert refusal.remedy.endswith("."), refusal


@CALM
@given(st.lists(SPECS, max_size=3))
def test_routes_are_distinct_and_the_first_that_matches_is_the_most_specific(
    specs: list[IngressSpec],
) -> None:
    models, _ = translated(specs)

    def rank(route: Route) -> tuple[bool, int]:
        return not route.exact, -len(route.path)

    for host, model in models.items():
        assert model.host == host
        assert len({(r.path, r.exact) for r in model.routes}) == len(model.routes)
        assert [rank(r) for r in model.routes] == sorted(rank(r) for r in model.routes)
        for route in model.routes:
            assert route.exact or not route.path.endswith("/")
            assert not route.path or route.path.startswith("/")
            assert route.pool.backend in (None, "shop/cart/80", "shop/cart/81")
        assert model.redirect == bool(model.certificate)


@CALM
@given(st.lists(SPECS, max_size=3))
def test_the_same_objects_give_the_same_models(specs: list[IngressSpec]) -> None:
    assert translated(specs) == translated(specs)


@CALM
@given(SPECS, st.lists(SPECS, max_size=2))
def test_a_younger_ingress_takes_no_route_of_an_older_one(
    old: IngressSpec, younger: list[IngressSpec]
) -> None:
    alone, _ = translated([old])
    with_others, _ = translated([old, *younger])
    rules = {(h, r.path, r.exact): r.pool.backend for h, m in alone.items() for r in m.routes}
    defaults = {(h, "", False) for h in alone}  # a rule of anyone's goes before a default backend
    both = {(h, r.path, r.exact): r.pool.backend for h, m in with_others.items() for r in m.routes}
    for at, backend in rules.items():
        assert at in both
        assert both[at] == backend or at in defaults
