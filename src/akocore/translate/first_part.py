"""Of an object that is too large its first part is served, and it is told how much that is.

Each function gives the object as far as it is served, and what it is told; an object within the
limits is given back as it is.  What counts is the order in the object, so an edit at its end moves
nothing.  Cost: a look at the lengths of its lists.
"""

from __future__ import annotations

from msgspec import structs

from akocore.config import Limits
from akocore.kube.objects import Gateway, Ingress, IngressRule, Service
from akocore.model import Refusal

__all__ = ["of_gateway", "of_ingress", "of_service", "too_large"]


def too_large(
    object_: str, field: str, what: str, limit: int, has: int, instead: str, **kind: bool
) -> Refusal:
    """What an object is told of which the first ``limit`` are served."""
    return Refusal(
        object=object_,
        field=field,
        reason="TooLarge",
        remedy=f"Its first {limit} {what} are served, of {has}. {instead}",
        **kind,
    )


def of_ingress(ingress: Ingress, limits: Limits) -> tuple[Ingress, list[Refusal]]:
    """Its first hosts, paths and entries of tls."""
    spec = ingress.spec
    has = sum([len(rule.http.paths) if rule.http is not None else 1 for rule in spec.rules])
    if (
        len(spec.rules) <= limits.hosts
        and has <= limits.paths
        and len(spec.tls) <= limits.hosts
        and sum([len(entry.hosts) for entry in spec.tls]) <= limits.paths
    ):
        return ingress, []
    object_ = f"Ingress/{ingress.metadata.key}"
    no: list[Refusal] = []

    def told(field: str, what: str, limit: int, has: int) -> None:
        more = "Make another Ingress of the rest."
        no.append(too_large(object_, field, what, limit, has, more))

    rules = _of_hosts(spec.rules, limits.hosts)
    if len(rules) < len(spec.rules):
        told("spec.rules", "hosts", limits.hosts, len({rule.host for rule in spec.rules}))
        has = sum([len(rule.http.paths) if rule.http is not None else 1 for rule in rules])
    if has > limits.paths:
        told("spec.rules", "paths", limits.paths, has)
        rules = _of_paths(rules, limits.paths)
    tls = spec.tls[: limits.hosts]
    if len(tls) < len(spec.tls):
        told("spec.tls", "entries", limits.hosts, len(spec.tls))
    named = sum([len(entry.hosts) for entry in tls])
    if named > limits.paths:
        told("spec.tls", "hosts", limits.paths, named)
        left, some = limits.paths, []
        for entry in tls:
            some.append(structs.replace(entry, hosts=entry.hosts[:left]))
            left -= len(some[-1].hosts)
            if not left:
                break
        tls = tuple(some)
    if not no:
        return ingress, no
    return structs.replace(ingress, spec=structs.replace(spec, rules=rules, tls=tls)), no


def _of_hosts(rules: tuple[IngressRule, ...], limit: int) -> tuple[IngressRule, ...]:
    """All before the first rule of a host too many."""
    seen: set[str] = set()
    for i, rule in enumerate(rules):
        seen.add(rule.host)
        if len(seen) > limit:
            return rules[:i]
    return rules


def _of_paths(rules: tuple[IngressRule, ...], limit: int) -> tuple[IngressRule, ...]:
    out: list[IngressRule] = []
    for rule in rules:
        if not limit:
            break
        if rule.http is None:
            out.append(rule)
            limit -= 1
            continue
        paths = rule.http.paths[:limit]
        out.append(structs.replace(rule, http=structs.replace(rule.http, paths=paths)))
        limit -= len(paths)
    return tuple(out)


def of_service(service: Service, limits: Limits) -> tuple[Service, list[Refusal]]:
    """Its first ports, and the first ranges of addresses that may come."""
    spec = service.spec
    ranges = spec.load_balancer_source_ranges
    if len(spec.ports) <= limits.ports and len(ranges) <= limits.source_ranges:
        return service, []
    object_ = f"Service/{service.metadata.key}"
    no: list[Refusal] = []
    if len(spec.ports) > limits.ports:
        more = "Make another Service of the rest, with enable-shared-vip if it is to be one VIP."
        no.append(too_large(object_, "spec.ports", "ports", limits.ports, len(spec.ports), more))
    if len(ranges) > limits.source_ranges:
        more = "Name larger ranges."
        at = "spec.loadBalancerSourceRanges"
        no.append(too_large(object_, at, "ranges", limits.source_ranges, len(ranges), more))
    spec = structs.replace(
        spec,
        ports=spec.ports[: limits.ports],
        load_balancer_source_ranges=ranges[: limits.source_ranges],
    )
    return structs.replace(service, spec=spec), no


def of_gateway(gateway: Gateway, limits: Limits) -> tuple[Gateway, list[Refusal]]:
    """The first listeners of a Gateway of L4."""
    spec = gateway.spec
    if len(spec.listeners) <= limits.ports:
        return gateway, []
    no = too_large(
        f"Gateway/{gateway.metadata.key}",
        "spec.listeners",
        "listeners",
        limits.ports,
        len(spec.listeners),
        "Make another Gateway of the rest.",
    )
    spec = structs.replace(spec, listeners=spec.listeners[: limits.ports])
    return structs.replace(gateway, spec=spec), [no]
