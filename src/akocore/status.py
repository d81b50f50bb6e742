"""Model and observed state → what each object says.  Computed when asked for, never stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from akocore.each_shown import each, each_list
from akocore.engines.envoy.ads import Elsewhere, Engine
from akocore.engines.envoy.resources import CDS, LDS, SDS, SRDS, cluster_name, collection
from akocore.kube.objects import Ingress
from akocore.model import Refusal
from akocore.place.virtual_services import Home, Placed, VirtualService
from akocore.realise_l4 import listener_names
from akocore.reconcile import Reconciler
from akocore.shown import quoted
from akocore.translate.ingress import IngressView
from akocore.translate.tls import CertificateProblem

if TYPE_CHECKING:
    from akocore.engines.envoy.process import EngineProcess
    from akocore.events import Events

__all__ = [
    "accepted",
    "condition",
    "events",
    "explain",
    "groups",
    "ingress_refusals",
    "ingresses",
    "networks",
    "pools",
    "service_engines",
    "settings",
    "virtual_services",
]


def condition(refusal: Refusal) -> dict[str, Any]:
    """A refusal as an object says it."""
    return {
        "type": "Warning" if refusal.warning else "Refused",
        "status": "True",
        "reason": refusal.reason,
        "message": f"{refusal.field}: {refusal.remedy}",
    }


def accepted(refusals: tuple[Refusal, ...]) -> dict[str, Any]:
    """``status`` and ``error`` as AKO writes them."""
    return {
        "status": "Accepted" if all(r.warning for r in refusals) else "Rejected",
        "error": "; ".join(f"{r.field}: {r.remedy}" for r in refusals),
        "conditions": [condition(r) for r in refusals],
    }


# ── what the engines say ────────────────────────────────────────────────────────────────────


def _listeners(service: VirtualService, home: Home) -> list[str]:
    if service.listeners is not None:
        return listener_names(service, home)
    return [f"{service.name}/{home.address}:{port.port}" for port in service.infra.listeners]


_REFUSED_FIELD = {LDS: "status.loadBalancer", SDS: "spec.tls"}  # else: spec.rules


def _engine_refusals(at: Reconciler, host: str, placed: Placed) -> list[tuple[str, str]]:
    """(field, why) of what the engines refuse of a host.  Cost: the refused.

    Of what depends on the machine, which engine; else it is the same of all, and said once.
    """
    rejecting = [engine for engine in at.ads.fleet.values() if engine.rejected]
    if not rejecting:
        return []
    tried = at.realiser.court.trying(("", host))  # what is at fault is not known yet
    wanted = {(SRDS, name) for _, name in placed.scopes if not tried}
    wanted |= {(CDS, cluster_name(backend)) for _, _, backend in placed.backends}
    service = at.placement.services[placed.vs]
    for home in service.homes:
        wanted |= {(LDS, name) for name in _listeners(service, home)}
    said = [
        (
            _REFUSED_FIELD.get(type_url, "spec.rules"),
            f"{engine.name if type_url == LDS else 'Service Engines'}: {found.message}"
            + (". Issue another certificate." if type_url == SDS else ""),
        )
        for engine in rejecting
        for (type_url, name), found in engine.rejected.items()
        if (type_url, name) in wanted
        or (type_url == SDS and at.realiser.host_of_sni(engine.group, name) == host)
    ]
    return list(dict.fromkeys(said))  # a wildcard's certificate is refused once a name


def _paths_left_out(at: Reconciler, host: str, key: str) -> list[tuple[str, str]]:
    """(field, why) of an Ingress's paths that engines refuse.  Cost: those left out anywhere."""
    left_out = at.realiser.court.left_out
    if not any(len(name) == 3 and name[0] == host for name in left_out):
        return []
    return [
        (owner.field, f"Service Engines refuse it: {why}. Its requests get a 500.")
        for (path, exact), owner in at.owners(host).items()
        if owner.ingress == key
        for why in left_out.get((host, path, exact), {}).values()
    ]


def _serving(at: Reconciler, service: VirtualService, home: Home) -> list[Engine | Elsewhere]:
    """The engines that answer on a virtual service's address: connected, listeners taken."""
    names = _listeners(service, home)
    ports = service.infra.listeners if service.listeners is None else ()
    scopes = [collection(service.name, port.port) for port in ports]
    return [
        engine
        for engine in at.ads.fleet.values()
        if engine.group == home.group
        and engine.answers
        and at.scale.has(service.name, home.group, engine.name)
        and not any(one in engine.awaited for one in scopes)
        and not any((LDS, name) in engine.rejected for name in names)
    ]


def _programmed(at: Reconciler, host: str) -> Home | None:
    """Where a host is served: its home, once an engine has it and none is behind."""
    placed = at.hosts[host]
    service = at.placement.services[placed.shown]
    home = service.shown
    if home is None or not _serving(at, service, home):
        return None
    wanted = max(placed.sequence(home.group, service.name), 1)
    return home if at.ads.acknowledged(home.group) >= wanted else None


def _waits_for(at: Reconciler, host: str) -> list[str]:
    """The engines that don't have a host yet which is to be shown; and where they are."""
    placed = at.hosts[host]
    service = at.placement.services[placed.shown]
    if (home := service.shown) is None:
        return []
    wanted = max(placed.sequence(home.group, service.name), 1)
    return sorted(
        f"{e.name} at {e.controller}" if isinstance(e, Elsewhere) else e.name
        for e in at.ads.fleet.values()
        if e.group == home.group and e.answers and e.acknowledged < wanted
    )


# ── Ingresses ───────────────────────────────────────────────────────────────────────────────


def ingress_refusals(at: Reconciler, key: str) -> list[Refusal]:
    """Everything that keeps an Ingress of ours from being served to the letter."""
    ingress = cast(Ingress, at.store.ingress(key))
    by = at.governed(ingress)
    if by.refusal is not None:
        return [by.refusal]
    if not by.ours:
        return []
    seen = at.store.view(key)
    out = list(seen.refusals)

    def no(field: str, reason: str, remedy: str) -> None:
        out.append(Refusal(object=f"Ingress/{key}", field=field, reason=reason, remedy=remedy))

    if by.setting not in at.infrastructure.infras:
        known = at.store.setting(by.setting) is not None
        reason = "AviInfraSettingRejected" if known else "AviInfraSettingNotFound"
        fix = "Correct it; its status says how." if known else "Create it."
        no(
            "spec.ingressClassName",
            reason,
            f"AviInfraSetting {quoted(by.setting)} can't be used. {fix}",
        )
        return out
    for host in seen.hosts:
        out += at.host_refusals.get(host, {}).get(key, ())
        placed = at.hosts.get(host)
        if placed is None or _claimed_by_another(at, host, key):
            continue
        service = at.placement.services[placed.vs]
        if service.over:
            no("status.loadBalancer", *vip_limit(service))
        if service.exhausted:
            no(
                "status.loadBalancer",
                "AddressesExhausted",
                f"Network {service.exhausted} has no free address for {service.name}."
                " Widen its vipRanges.",
            )
        for field, said in _engine_refusals(at, host, placed):
            no(field, "EngineRejected", said)
        for field, said in _paths_left_out(at, host, key):
            no(field, "EngineRejected", said)
    if at.endpoints:
        out += _left_out(at, key, seen)
    out += at.faults.of(f"Ingress/{key}")
    if at.faults:
        out += _faults_behind(at, ingress)
    for secret, field in seen.tls.values():
        found = at.realiser.certificate_of(secret)
        if found is None:
            no(field, "SecretNotFound", f"Create Secret {secret} with tls.crt and tls.key.")
        elif isinstance(found, CertificateProblem):
            no(field, found.reason, f"Secret {secret}, {found.field}: {found.remedy}")
    return out


def vip_limit(service: VirtualService) -> tuple[str, str]:
    """Reason and remedy, where a namespace has as many VIPs as it may."""
    remedy = (
        f"Namespace {service.namespace} may have {service.over} VIPs of Network"
        f" {service.infra.network} (vipsPerNamespace) and has them. Give one up, let hosts share a"
        " virtual service, or have the limit raised."
    )
    return "VipLimitReached", remedy


def _left_out(at: Reconciler, key: str, seen: IngressView) -> list[Refusal]:
    """What endpoints of its Services are none.  Cost: its paths."""
    namespace = key.partition("/")[0]
    paths = [path for of_host in seen.hosts.values() for path in of_host]
    if seen.default is not None:
        paths.append(seen.default)
    fields: dict[str, str] = {}
    for path in paths:
        fields.setdefault(f"{namespace}/{path.service}", f"{path.field}.backend.service")
    return [
        one
        for service, field in fields.items()
        for one in at.endpoints.told(f"Ingress/{key}", field, service)
    ]


def _faults_behind(at: Reconciler, ingress: Ingress) -> list[Refusal]:
    """Faults of ours over the Services that an Ingress names."""
    namespace, key = ingress.metadata.namespace, ingress.metadata.key
    seen = at.store.view(key)
    paths = [path for paths in seen.hosts.values() for path in paths]
    paths += [seen.default] if seen.default is not None else []
    return [
        Refusal(
            object=f"Ingress/{key}",
            field=path.field,
            reason=said.reason,
            remedy=f"Service {namespace}/{path.service}: {said.remedy}",
        )
        for path in paths
        for said in at.faults.of(f"Service/{namespace}/{path.service}")
    ]


def _claimed_by_another(at: Reconciler, host: str, key: str) -> bool:
    said = at.host_refusals.get(host)
    return said is not None and any(r.reason == "HostClaimed" for r in said.get(key, ()))


def ingress(at: Reconciler, key: str) -> dict[str, Any] | None:
    """One Ingress: class, hosts, addresses as they are served, conditions; None: not ours."""
    obj = cast(Ingress, at.store.ingress(key))
    by = at.governed(obj)
    if not by.ours and by.refusal is None:
        return None
    seen = at.store.view(key)
    points = []
    for host in seen.hosts:
        if host not in at.hosts or _claimed_by_another(at, host, key):
            continue
        if (home := _programmed(at, host)) is not None:
            points.append({"ip": home.address, "hostname": host})
    return {
        "metadata": {
            "namespace": obj.metadata.namespace,
            "name": obj.metadata.name,
            "creationTimestamp": obj.metadata.creation_timestamp,
        },
        "spec": {
            "ingressClassName": by.ingress_class,
            "hosts": list(seen.hosts),
            "tls": bool(seen.tls),
        },
        "status": {
            "loadBalancer": {"ingress": points},
            "conditions": [condition(r) for r in ingress_refusals(at, key)],
        },
    }


def ingresses(at: Reconciler) -> list[dict[str, Any]]:
    """Every Ingress of ours."""
    return each(at.faults, "Ingress", at.store.all("Ingress"), lambda key: ingress(at, key))


# ── virtual services, pools, engines ────────────────────────────────────────────────────────


def virtual_service(
    at: Reconciler, service: VirtualService, *, hosts: bool = True
) -> dict[str, Any]:
    """One virtual service: address, shard, engines, how it fares and why; ``hosts``: these too."""
    home = service.shown
    engines = sorted(e.name for e in _serving(at, service, home)) if home else []
    wanted = 1
    if home:
        wanted = max(at.scale.wanted(service.name, home.group), at.scale.least(home.group))
    pools, up = len(service.pools), service.pools_up
    why = []
    if service.over:
        why.append(f"Namespace {service.namespace} has {service.over} VIPs, and may have no more")
    elif service.exhausted:
        why.append(f"Network {service.exhausted} has no free address")
    elif service.misplaced and not home:
        why.append(f"it may not have {service.wanted}")
    elif not engines:
        why.append(f"no Service Engine of {service.infra.group} serves it")
    elif len(engines) < wanted:
        why.append(f"{len(engines)} of {wanted} Service Engines")
    if home:
        names = set(_listeners(service, home))
        for engine in at.ads.fleet.values():
            for (type_url, name), found in engine.rejected.items():
                if type_url == LDS and name in names:
                    why.append(f"{engine.name}: {found.message}")
    if up < pools:
        why.append(f"{pools - up} of {pools} pools have no server")
    state = "down" if home is None or not engines else "degraded" if why else "up"
    return {
        "metadata": {"name": service.name},
        "spec": {
            "aviInfraSetting": service.infra.setting,
            "hosts": sorted(service.hosts | _gateway_hosts(service)) if hosts else [],
            "listeners": [
                f"{protocol}/{port}"
                for protocol, port in (
                    *(service.listeners or ()),
                    *(service.gateway.ports if service.gateway is not None else ()),
                )
            ],
        },
        "status": {
            "vip": home.address if home else "",
            "shard": service.shard if service.shard >= 0 else None,
            "network": service.infra.network,
            "seGroup": service.infra.group,
            "pools": {"up": up, "total": pools},
            "serviceEngines": engines,
            "state": state,
            "why": "; ".join(why),
        },
    }


def _gateway_hosts(service: VirtualService) -> set[str]:
    """The hosts of a Gateway's virtual service that a route speaks for."""
    placed = service.gateway.hosts.items() if service.gateway is not None else ()
    return {at.host for at, one in placed if one.model.rules and one.owner[0]}


def virtual_services(at: Reconciler) -> list[dict[str, Any]]:
    """Every virtual service."""
    return each(
        at.faults,
        "VirtualService",
        at.placement.services.values(),
        lambda service: virtual_service(at, service),
        lambda service: service.name,
    )


def pools(at: Reconciler) -> list[dict[str, Any]]:
    """Every pool: the Service port behind a path of a host, and how many servers are up."""
    return each_list(at.faults, "host", at.hosts, lambda host: _pools(at, host))


def _pools(at: Reconciler, host: str) -> list[dict[str, Any]]:
    out = []
    placed = at.hosts[host]
    for route in placed.model.routes:
        backend = route.pool.backend
        servers = at.realiser.members(backend) if backend else []
        out.append(
            {
                "metadata": {"name": route.pool.name},
                "spec": {
                    "virtualService": placed.shown,
                    "host": host,
                    "path": route.path or "/",
                    "service": backend or "",
                },
                "status": {
                    "servers": [f"{address}:{port}" for address, port in servers],
                    "state": "up" if servers else "down",
                },
            }
        )
    return out


def service_engines(
    at: Reconciler,
    processes: Mapping[str, EngineProcess],
    requests: Mapping[str, Mapping[str, int]],
    agents: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Every Service Engine: its process, its stream, what it has served since its start.

    One that is no process of ours: its stream, here or at another replica.  ``agents``: name →
    group of those that have one.
    """
    fleet = at.ads.fleet
    known = {**(agents or {}), **at.ads.lost}

    def show(name: str) -> dict[str, Any]:
        process, engine = processes.get(name), fleet.get(name)
        group = process.group if process else engine.group if engine else known[name]
        return _service_engine(at, name, group, process, requests.get(name, {}))

    names = (*processes, *sorted({*fleet, *known} - processes.keys()))
    return each(at.faults, "ServiceEngine", names, show)


def _service_engine(
    at: Reconciler,
    name: str,
    group: str,
    process: EngineProcess | None,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    engine = at.ads.fleet.get(name)
    behind = (
        engine is None or engine.clearing or engine.acknowledged < at.ads.catalog(group).sequence
    )
    state = "down" if process is not None and process.pid is None else "up"
    if state == "up" and engine is None:
        state = "disconnected"
    return {
        "metadata": {"name": name},
        "spec": {"seGroup": group},
        "status": {
            "state": state,
            "pid": process.pid if process else None,
            "restarts": process.restarts if process else None,
            "lastExit": process.last_exit if process else "",
            "adopted": process.adopted if process else False,
            "controller": engine.controller if isinstance(engine, Elsewhere) else "",
            "upToDate": not behind,
            "waitsFor": engine.waits_for() if engine else [],
            "rejected": len(engine.rejected) if engine else 0,
            "nacks": engine.nacks if engine else 0,
            "virtualServices": sum(
                1
                for service in at.placement.services.values()
                if any(home.group == group for home in service.homes)
            ),
            "requests": sum(counts.values()) if process else None,
            "requestsByVirtualService": dict(counts),
        },
    }


# ── infrastructure ──────────────────────────────────────────────────────────────────────────


def settings(at: Reconciler) -> list[dict[str, Any]]:
    """Every AviInfraSetting: Accepted or Rejected, and what is in force."""

    def show(key: str) -> dict[str, Any]:
        infra = at.infrastructure.infras.get(key)
        force = (
            {"seGroup": infra.group, "network": infra.network, "shardSize": infra.shard_size.value}
            if infra
            else {}
        )
        status = accepted(at.infrastructure.refusals("AviInfraSetting", key))
        return {"metadata": {"name": key}, "status": {**status, "inForce": force}}

    return each(at.faults, "AviInfraSetting", at.store.all("AviInfraSetting"), show)


def networks(at: Reconciler) -> list[dict[str, Any]]:
    """Every Network: Accepted or Rejected, addresses given and free."""

    def show(name: str) -> dict[str, Any]:
        pool = at.placement.pools.get(name)
        given = {"total": pool.size, "free": pool.free} if pool else {"total": 0, "free": 0}
        said = accepted(at.infrastructure.network_refusals[name])
        return {"metadata": {"name": name}, "status": {**said, "addresses": given}}

    return each(at.faults, "Network", sorted(at.infrastructure.network_refusals), show)


def groups(at: Reconciler) -> list[dict[str, Any]]:
    """Every ServiceEngineGroup, with the engines that are connected."""
    return [
        {
            "metadata": {"name": name},
            "spec": {
                "haMode": spec.ha_mode,
                "bufferSe": spec.buffer_se if spec.ha_mode == "NPlusM" else 0,
                "minSePerVs": spec.min_se_per_vs,
                "maxSePerVs": spec.max_se_per_vs,
                "maxSe": spec.max_se,
            },
            "status": {
                "serviceEngines": sorted(e.name for e in at.ads.fleet.values() if e.group == name),
            },
        }
        for name, spec in sorted(at.infrastructure.groups.items())
    ]


def events(ring: Events) -> list[dict[str, Any]]:
    """The last events, oldest first."""
    return [
        {
            "regarding": event.object,
            "type": event.type,
            "reason": event.reason,
            "note": event.note,
            "eventTime": event.first.isoformat(timespec="milliseconds"),
            "lastObservedTime": event.last.isoformat(timespec="milliseconds"),
            "count": event.count,
        }
        for event in ring
    ]


# ── explain ─────────────────────────────────────────────────────────────────────────────────


def explain(at: Reconciler, key: str) -> dict[str, Any] | None:
    """Why an Ingress is where it is: class, setting, shard, address, pools, what was refused."""
    obj = at.store.ingress(key)
    if obj is None:
        return None
    by = at.governed(obj)
    named = obj.spec.ingress_class_name or obj.metadata.annotation("kubernetes.io/ingress.class")
    out: dict[str, Any] = {
        "object": f"Ingress/{key}",
        "class": {
            "name": by.ingress_class,
            "from": "the Ingress" if named else "the default IngressClass",
            "served": by.ours,
        },
        "refused": [condition(r) for r in ingress_refusals(at, key)],
        "hosts": [],
    }
    if not by.ours:
        return out
    infra = at.infrastructure.infras.get(by.setting)
    out["setting"] = {
        "name": by.setting or "(the defaults of the configuration)",
        "seGroup": infra.group if infra else "",
        "network": infra.network if infra else "",
        "shardSize": infra.shard_size.value if infra else "",
    }
    for host in at.store.view(key).hosts:
        placed = at.hosts.get(host)
        if placed is None or _claimed_by_another(at, host, key):
            continue
        service = at.placement.services[placed.shown]
        out["hosts"].append(
            {
                "host": host,
                "programmed": _programmed(at, host) is not None,
                "waitsFor": _waits_for(at, host),
                "shard": service.shard if service.shard >= 0 else "dedicated",
                "virtualService": virtual_service(at, service)["status"] | {"name": service.name},
                "leaving": sorted(placed.left),
                "certificate": placed.model.certificate,
                "redirect": placed.model.redirect,
                "routes": [
                    {
                        "path": route.path or "/",
                        "match": "Exact" if route.exact else "Prefix",
                        "pool": route.pool.name,
                        "service": route.pool.backend or "",
                        "servers": [
                            f"{address}:{port}"
                            for address, port in (
                                at.realiser.members(route.pool.backend)
                                if route.pool.backend
                                else ()
                            )
                        ],
                    }
                    for route in placed.model.routes
                ],
            }
        )
    return out
