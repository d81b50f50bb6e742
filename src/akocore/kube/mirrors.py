"""What ``kubectl get vs`` and ``kubectl get se`` show: the controller's own nouns as objects."""

from __future__ import annotations

import re

from mmh3 import mmh3_x64_128_digest

from akocore import status
from akocore.engines.envoy.ads import Elsewhere
from akocore.engines.envoy.process import EngineProcess
from akocore.kube.gateway_objects import GATEWAY_API
from akocore.kube.objects import ReplicaRouter, ServiceEngineStatus, VirtualServiceStatus
from akocore.place.virtual_services import VirtualService
from akocore.reconcile import Reconciler
from akocore.route_health import RouteHealth

__all__ = ["dress", "object_name", "service_engine", "virtual_service"]

_NO_ROUTER = ReplicaRouter(name="", group="")
_LABEL_MAX = 63
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LOWERED = re.compile(r"-l7-|-evh(-|\Z)")  # only AKO writes these, in upper case
_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")  # RFC 1123


def object_name(name: str) -> str:
    """A name as Kubernetes allows it: lower case; what it can't spell gives way to a hash.

    One that looks already as the lower case of another's would has a hash, too.
    """
    lower = name.lower()
    if _SUBDOMAIN.fullmatch(lower) and not _LOWERED.search(name):
        return lower
    digest = mmh3_x64_128_digest(name.encode()).hex()[:10]
    return f"{re.sub('[^a-z0-9]+', '-', lower).strip('-')[:200]}-{digest}"


def virtual_service(
    at: Reconciler, service: VirtualService, routes: RouteHealth | None = None
) -> VirtualServiceStatus:
    """The mirror of one virtual service.  Cost: its engines, not its hosts."""
    shown = status.virtual_service(at, service, hosts=False)
    said = shown["status"]
    if routes is not None:
        routes.judge(service, said)
    dedicated = service.shard < 0
    return VirtualServiceStatus(
        name=service.name,
        vip=said["vip"],
        shard=said["shard"],
        host=next(iter(service.hosts), "") if dedicated else "",
        hosts=len(service.hosts),
        listeners=tuple(shown["spec"]["listeners"]),
        avi_infra_setting=service.infra.setting,
        network=said["network"],
        se_group=said["seGroup"],
        pools_up=said["pools"]["up"],
        pools=said["pools"]["total"],
        service_engines=tuple(said["serviceEngines"]),
        announced_by=tuple(said.get("announcedBy", ())),
        state=said["state"],
        why=said["why"],
    )


def dress(at: Reconciler, vs: str) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations of a virtual service's mirror: what its Gateway's infrastructure has.

    GEP-1867; and the Gateway's name, by GEP-1762, where it can be a label.
    """
    key = at.gateway_api.owners.get(vs)
    state = at.gateway_api.gateways.get(key) if key is not None else None
    if state is None:
        return {}, {}
    name, has = state.gateway.metadata.name, state.gateway.spec.infrastructure
    labels = {f"{GATEWAY_API}/gateway-name": name} if len(name) <= _LABEL_MAX else {}
    if has is None:
        return labels, {}
    return labels | (has.labels or {}), has.annotations or {}


def service_engine(
    at: Reconciler,
    name: str,
    process: EngineProcess | None,
    controller: str,
    router: ReplicaRouter | None = None,
) -> ServiceEngineStatus | None:
    """The mirror of one Service Engine; None: there is none of that name.

    ``controller``: who we are; ``router``: what its router does, where it has one.
    """
    engine = at.ads.fleet.get(name)
    if process is None and engine is None and router is None and name not in at.ads.lost:
        return None
    known = {router.name: router.group} if router is not None else at.ads.lost
    group = process.group if process else engine.group if engine else known[name]
    if process is None and engine is None:
        controller = ""
    elif isinstance(engine, Elsewhere):
        controller = engine.controller
    if process is not None and process.pid is None:
        state, why = "down", process.last_exit
    elif engine is None:
        state, why = "disconnected", "it asks for no configuration"
    elif not engine.answers:
        state, why = "starting", ""
    else:
        state, why = "up", next((found.message for found in engine.rejected.values()), "")
    if router is not None:
        down = [f"BGP with {s.peer} is down ({s.why})" for s in router.bgp if s.why]
        why = "; ".join(filter(None, [why, router.why, *down]))
    else:
        router = _NO_ROUTER
    up = sum(not session.why for session in router.bgp)
    return ServiceEngineStatus(
        se_group=group,
        state=state,
        up_to_date=engine is not None and engine.answers,
        virtual_services=sum(
            any(home.group == group for home in service.homes)
            for service in at.placement.services.values()
        ),
        restarts=process.restarts if process is not None else 0,
        rejected=len(engine.rejected) if engine is not None else 0,
        controller=controller,
        address=router.address,
        vips=router.announced,
        bgp_up=f"{up}/{len(router.bgp)}" if router.bgp else "",
        bgp=router.bgp,
        bfd=router.bfd,
        why=why,
    )
