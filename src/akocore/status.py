"""Model and observed state → what each object says.  Computed when asked for, never stored."""

from __future__ import annotations

from typing import Any, cast

from akocore.engines.envoy.resources import CDS, SRDS, cluster_name
from akocore.kube.objects import Ingress
from akocore.model import Refusal
from akocore.reconcile import Reconciler
from akocore.translate.tls import CertificateProblem

__all__ = ["ingress_refusals", "ingresses", "settings", "virtual_services"]


def _condition(refusal: Refusal) -> dict[str, Any]:
    return {
        "type": "Warning" if refusal.warning else "Refused",
        "status": "True",
        "reason": refusal.reason,
        "message": f"{refusal.field}: {refusal.remedy}",
    }


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

    if by.setting not in at.infras:
        known = at.store.setting(by.setting) is not None
        reason = "AviInfraSettingRejected" if known else "AviInfraSettingNotFound"
        fix = "Correct it; its status says how." if known else "Create it."
        no("spec.ingressClassName", reason, f"AviInfraSetting {by.setting} can't be used. {fix}")
        return out
    for host in seen.hosts:
        out += at.host_refusals.get(host, {}).get(key, ())
        placed = at.hosts.get(host)
        if placed is None:
            continue
        service = at.placement.services[placed.vs]
        if service.exhausted:
            no(
                "status.loadBalancer",
                "AddressesExhausted",
                f"Network {service.exhausted} has no free address for {service.name}."
                " Widen its vipRanges.",
            )
        for engine in at.ads.engines.values():
            for rejection in engine.rejected.values():
                names = {name for _, name in placed.scopes}
                names |= {cluster_name(backend) for _, backend in placed.backends}
                if rejection.type_url in (SRDS, CDS) and rejection.name in names:
                    no("spec.rules", "EngineRejected", f"{engine.name}: {rejection.message}")
    for secret, field in seen.tls.values():
        found = at.certificate_of(secret)
        if found is None:
            no(field, "SecretNotFound", f"Create Secret {secret} with tls.crt and tls.key.")
        elif isinstance(found, CertificateProblem):
            no(field, found.reason, f"Secret {secret}, {found.field}: {found.remedy}")
    return out


def _programmed(at: Reconciler, host: str) -> bool:
    placed = at.hosts[host]
    service = at.placement.services[placed.shown]
    home = service.shown
    if home is None:
        return False
    return at.ads.acknowledged(home.group) >= max(placed.sequence.get(home.group, 1), 1)


def ingresses(at: Reconciler) -> list[dict[str, Any]]:
    """Every Ingress of ours: class, hosts, addresses as they are served, conditions."""
    out = []
    for key, obj in at.store.all("Ingress").items():
        ingress = cast(Ingress, obj)
        by = at.governed(ingress)
        if not by.ours and by.refusal is None:
            continue
        points = []
        for host in at.store.view(key).hosts:
            placed = at.hosts.get(host)
            if placed is None or not _programmed(at, host):
                continue
            if key in at.host_refusals.get(host, {}) and any(
                r.reason == "HostClaimed" for r in at.host_refusals[host][key]
            ):
                continue
            home = at.placement.services[placed.shown].shown
            assert home is not None
            points.append({"ip": home.address, "hostname": host})
        out.append(
            {
                "metadata": {
                    "namespace": ingress.metadata.namespace,
                    "name": ingress.metadata.name,
                },
                "spec": {
                    "ingressClassName": by.ingress_class,
                    "hosts": list(at.store.view(key).hosts),
                },
                "status": {
                    "loadBalancer": {"ingress": points},
                    "conditions": [_condition(r) for r in ingress_refusals(at, key)],
                },
            }
        )
    return out


def virtual_services(at: Reconciler) -> list[dict[str, Any]]:
    """Every virtual service: address, shard, hosts, engines, and how it fares."""
    out = []
    for service in at.placement.services.values():
        home = service.shown
        engines = sorted(e.name for e in at.ads.engines.values() if home and e.group == home.group)
        wanted = at.groups[home.group].min_se_per_vs if home and home.group in at.groups else 1
        backends = {b for h in service.hosts for _, b in at.hosts[h].backends}
        up = sum(1 for backend in backends if at.members(backend))
        if home is None or not engines:
            state = "down"
        else:
            state = "up" if len(engines) >= wanted and up == len(backends) else "degraded"
        out.append(
            {
                "metadata": {"name": service.name},
                "status": {
                    "vip": home.address if home else "",
                    "shard": service.shard,
                    "network": service.infra.network,
                    "seGroup": service.infra.group,
                    "hosts": len(service.hosts),
                    "pools": {"up": up, "total": len(backends)},
                    "serviceEngines": engines,
                    "state": state,
                },
            }
        )
    return out


def settings(at: Reconciler) -> list[dict[str, Any]]:
    """Every AviInfraSetting: Accepted or Rejected, with what was refused."""
    return [
        {
            "metadata": {"name": key},
            "status": {
                "status": "Rejected" if at.setting_refusals.get(key) else "Accepted",
                "error": "; ".join(
                    f"{r.field}: {r.remedy}" for r in at.setting_refusals.get(key, ())
                ),
            },
        }
        for key in at.store.all("AviInfraSetting")
    ]
