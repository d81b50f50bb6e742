"""Ingress → what each of its hosts asks for, and a host → its model.

Two steps, since the unit of work is the host: `view` depends on one Ingress alone and is
kept with it; `host_model` merges the views of all Ingresses that name a host.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

from akocore.kube.objects import Ingress, IngressBackend, Service, ServicePort
from akocore.model import HostModel, Pool, Refusal, Route
from akocore.shown import quoted
from akocore.translate.names import Names
from akocore.translate.services import proxy_problem

if TYPE_CHECKING:
    from akocore.store import Store

__all__ = [
    "ANY_HOST",
    "IngressView",
    "PathView",
    "backend_port",
    "different_hosts",
    "host_model",
    "refers",
    "view",
]

ANY_HOST = ""  # the host of a rule without one, and of a default backend
DEFAULT = "spec.defaultBackend"

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*\Z")
_NO_TLS: Mapping[str, tuple[str, str]] = MappingProxyType({})
_COMMON = 16  # rules, and paths of one
_PATH_TYPES = ("Exact", "Prefix", "ImplementationSpecific")


class PathView(Struct, frozen=True, gc=False):
    """One path of a host as an Ingress asks for it."""

    path: str
    exact: bool
    service: str
    port_name: str
    port_number: int
    field: str


class IngressView(Struct, frozen=True, gc=False):
    """What one Ingress asks for: paths and Secret ("namespace/name") by host."""

    hosts: dict[str, tuple[PathView, ...]]
    default: PathView | None
    tls: Mapping[str, tuple[str, str]]  # host → (Secret's key, field)
    refusals: tuple[Refusal, ...]


def _host_problem(host: str) -> str | None:
    """Why a rule's host can't be served, with the remedy; None when it can."""
    if _HOST.match(host) and len(host) <= 253:
        if not host[-1].isdigit():
            return None
        try:
            ip_address(host)
        except ValueError:
            return None
        return f"{host} is an address. Write a DNS name, or no host for any."
    if host.count(":") > 1:
        return f"{host} is an address. Write a DNS name, or no host for any."
    if ":" in host:
        return f"{host} carries a port. Write {host.split(':')[0]}; ports come from the class."
    if host.endswith("."):
        return f"{host} ends with a dot. Write {host.rstrip('.')}."
    if host != host.lower():
        return f"{host} has upper-case letters. Write {host.lower()}."
    return f"{quoted(host)} is not a DNS name. Write lower-case labels, with *. only at the start."


def _backend(backend: IngressBackend, path: str, exact: bool, field: str) -> PathView | str:
    """The path's view, or why it can't be."""
    service = backend.service
    if service is None:
        if backend.resource is not None:
            kind = quoted(backend.resource.kind)
            return f"Backend resources ({kind}) are not served. Name a service."
        return "Name a service."
    port = service.port
    if not service.name:
        return "Name the service."
    if port.name and port.number:
        return "Give either port.name or port.number, not both."
    return PathView(path, exact, service.name, port.name, port.number, field)


def view(ingress: Ingress, valid: Container[str] = ()) -> IngressView:
    """What ``ingress`` asks for, host by host.  ``valid``: hosts that are known to be.

    Cost: its rules.
    """
    meta, spec = ingress.metadata, ingress.spec
    namespace = meta.namespace
    no: list[Refusal] = []
    name = f"Ingress/{namespace}/{meta.name}"

    def refuse(field: str, reason: str, remedy: str, warning: bool = False) -> None:
        no.append(Refusal(object=name, field=field, reason=reason, remedy=remedy, warning=warning))

    hosts: dict[str, list[PathView]] = {}
    for r, rule in enumerate(spec.rules):
        host = rule.host
        if host and host not in valid and (problem := _host_problem(host)):
            refuse(f"spec.rules[{r}].host", "InvalidHost", problem)
            continue
        paths = hosts.setdefault(host, [])
        if rule.http is None:
            if spec.default_backend is None:
                refuse(f"spec.rules[{r}].http", "MissingBackend", "Add http.paths with a backend.")
            continue
        for p, path in enumerate(rule.http.paths):
            common = r < _COMMON and p < _COMMON
            field = _path_field(r, p) if common else f"spec.rules[{r}].http.paths[{p}]"
            text = path.path or "/"
            if path.path_type not in _PATH_TYPES:
                refuse(
                    f"{field}.pathType",
                    "InvalidPathType",
                    f"{quoted(path.path_type)} is unknown. Write Exact, Prefix or"
                    " ImplementationSpecific.",
                )
            elif not text.startswith("/"):
                refuse(
                    f"{field}.path",
                    "InvalidPath",
                    f"Write /{quoted(text)}: a path starts with a slash.",
                )
            elif (
                not text.isascii()
                or not text.isprintable()
                or " " in text
                or "?" in text
                or "#" in text
            ):
                refuse(f"{field}.path", "InvalidPath", "Write a plain URL path, percent-encoded.")
            else:
                exact = path.path_type == "Exact"
                found = _backend(path.backend, text if exact else text.rstrip("/"), exact, field)
                if isinstance(found, str):
                    refuse(f"{field}.backend", "InvalidBackend", found)
                else:
                    paths.append(found)
    default: PathView | None = None
    if spec.default_backend is not None:
        found = _backend(spec.default_backend, "", False, DEFAULT)
        if isinstance(found, str):
            refuse(DEFAULT, "InvalidBackend", found)
        else:
            default = found
            hosts.setdefault(ANY_HOST, [])
    tls = _tls(ingress, hosts, refuse)
    if not spec.rules and spec.default_backend is None:
        refuse("spec.rules", "NoRules", "Add a rule or a defaultBackend.")
    return IngressView(
        {host: tuple(paths) for host, paths in hosts.items()},
        default,
        tls,
        tuple(no),
    )


def different_hosts(
    before: Ingress, old: IngressView, after: Ingress, new: IngressView
) -> set[str]:
    """The hosts whose models may differ when one state of an Ingress follows another.

    Cost: a comparison of the paths, which is little beside a model of theirs.
    """
    meta, was = after.metadata, before.metadata
    if (
        old.default != new.default
        or after.spec.ingress_class_name != before.spec.ingress_class_name
        or (meta.annotations, meta.creation_timestamp) != (was.annotations, was.creation_timestamp)
    ):
        return {*old.hosts, *new.hosts}
    out = old.hosts.keys() ^ new.hosts.keys()
    moved = [rule.host for rule in before.spec.rules] != [rule.host for rule in after.spec.rules]
    for host, paths in new.hosts.items():
        if (
            old.hosts.get(host) != paths
            or old.tls.get(host) != new.tls.get(host)
            or (moved and not paths)  # then only its rule's number is told of
        ):
            out.add(host)
    return out


@lru_cache(1024)
def _path_field(rule: int, path: int) -> str:
    """Of the first ones, which many Ingresses have, there is one text."""
    return f"spec.rules[{rule}].http.paths[{path}]"


def refers(ingress: Ingress, seen: IngressView) -> set[str]:
    """What, when it changes, may change this Ingress: "Kind/key"."""
    meta = ingress.metadata
    namespace = meta.namespace
    named = ingress.spec.ingress_class_name or meta.annotation("kubernetes.io/ingress.class")
    out = {f"Namespace/{namespace}", f"IngressClass/{named or ''}"}
    services = {path.service for paths in seen.hosts.values() for path in paths}
    out.update([f"Service/{namespace}/{service}" for service in services])
    if seen.default is not None:
        out.add(f"Service/{namespace}/{seen.default.service}")
    out.update([f"Secret/{secret}" for secret, _ in seen.tls.values()])
    return out


def _tls(ingress: Ingress, hosts: Iterable[str], refuse: object) -> Mapping[str, tuple[str, str]]:
    """Secret by host.  An entry without hosts speaks for every host of the Ingress.

    An entry that names a host goes before one with its wildcard, and that before one without
    hosts; of several alike the first decides.
    """
    assert callable(refuse)
    if not ingress.spec.tls:
        return _NO_TLS
    namespace = ingress.metadata.namespace
    named, covered, every = (dict[str, tuple[str, str]]() for _ in range(3))
    for t, entry in enumerate(ingress.spec.tls):
        field = f"spec.tls[{t}]"
        if not entry.secret_name:
            refuse(
                f"{field}.secretName", "MissingSecret", "Name a Secret of type kubernetes.io/tls."
            )
            continue
        secret = f"{namespace}/{entry.secret_name}"
        if not entry.hosts:
            for host in hosts:
                every.setdefault(host, (secret, f"{field}.secretName"))
        for h, host in enumerate(entry.hosts):
            mine = [x for x in hosts if host[:2] == "*." and _covers(host, x)]
            for x in mine:
                covered.setdefault(x, (secret, f"{field}.secretName"))
            if host in hosts:
                first = named.setdefault(host, (secret, f"{field}.secretName"))[0]
                if first != secret:
                    refuse(
                        f"{field}.hosts[{h}]",
                        "CertificateConflict",
                        f"An earlier entry serves {host} with Secret {first}. Name {host} once.",
                    )
            elif not mine:
                refuse(
                    f"{field}.hosts[{h}]",
                    "TLSHostWithoutRule",
                    f"No rule has host {quoted(host)}: add one, or take it out of tls.",
                    True,
                )
    return every | covered | named


def _covers(wildcard: str, host: str) -> bool:
    """Whether ``*.a.b`` stands for ``host``: exactly one label more."""
    return host.partition(".")[2] == wildcard[2:]


def backend_port(service: Service, view: PathView) -> tuple[ServicePort | None, bool]:
    """The TCP port of a Service that a path means, and whether only its targetPort matched."""
    ports = [port for port in service.spec.ports if port.protocol == "TCP"]
    if view.port_name:
        for port in ports:
            if port.name == view.port_name:
                return port, False
        for port in ports:
            if port.target_port == view.port_name:
                return port, True
        return None, False
    if not view.port_number:
        return (ports[0], False) if len(ports) == 1 else (None, False)
    for port in ports:
        if port.port == view.port_number:
            return port, False
    for port in ports:
        if port.target_port == view.port_number:
            return port, True
    return None, False


def host_model(
    host: str,
    setting: str,
    dedicated: bool,
    ingresses: Iterable[Ingress],
    store: Store,
    names: Names,
    owner: str = "",
) -> tuple[HostModel, dict[str, list[Refusal]]]:
    """The model of one host from its Ingresses in order of precedence (oldest first).

    Certificate and redirect are of ``owner``, by default the oldest one's namespace.  Refusals by
    Ingress key.  Cost: the paths of this host.
    """
    no: dict[str, list[Refusal]] = {}
    routes: dict[tuple[str, bool], tuple[Route, str]] = {}
    defaults: list[tuple[Ingress, PathView]] = []
    known: dict[tuple[str, str, str, int], str] = {}  # Service ports of which nothing is to be said
    beyond: dict[str, int] = {}  # Ingress → its paths that the host has no place for
    ordered = tuple(ingresses)
    owner = owner or ordered[0].metadata.namespace
    certificate = _certificate(host, owner, ordered, store, no)

    form = names.child_pool if certificate or dedicated else None
    most = store.limits.host_paths

    def add(ingress: Ingress, key: str, path: PathView) -> None:
        at = (path.path, path.exact)
        if at in routes:
            other = routes[at][1]
            no.setdefault(key, []).append(
                Refusal(
                    object=f"Ingress/{key}",
                    field=path.field if path.field == DEFAULT else f"{path.field}.path",
                    reason="DuplicateHostPath",
                    remedy=f"{host or 'any host'}{path.path or '/'} is already served by"
                    f" Ingress {other}, which came first. Choose another path.",
                )
            )
            return
        if len(routes) >= most:
            beyond[key] = beyond.get(key, 0) + 1
            return
        meta = ingress.metadata
        asked = (meta.namespace, path.service, path.port_name, path.port_number)
        backend = known.get(asked)
        if backend is None:
            said = len(no.get(key, ()))
            backend = _resolve(ingress, path, store, no)
            if backend is not None and len(no.get(key, ())) == said:
                known[asked] = backend  # of many paths to one Service the first has asked for all
        shown = path.path or "/"
        pool = (
            names.insecure_pool(setting, host, shown, meta.namespace, meta.name)
            if form is None
            else form(
                setting,
                host,
                shown,
                meta.namespace,
                meta.name,
                service=path.service,
                dedicated=dedicated,
            )
        )
        routes[at] = (Route(path.path, path.exact, Pool(pool, backend)), key)

    for ingress in ordered:
        key = ingress.metadata.key
        seen = store.view(key)
        for path in seen.hosts.get(host, ()):
            add(ingress, key, path)
        if seen.default is not None:
            defaults.append((ingress, seen.default))
    for ingress, path in defaults:
        # One that its own Ingress hides is no fault; on any host, one that another hides is.
        hidden = routes.get(("", False))
        if hidden is None or (host == ANY_HOST and hidden[1] != ingress.metadata.key):
            add(ingress, ingress.metadata.key, path)
    for key, count in beyond.items():
        no.setdefault(key, []).append(_no_place(host, key, count, most))
    order = tuple([routes[at][0] for at in _by_precedence(routes)])
    return HostModel(host, setting, order, certificate, bool(certificate)), no


def _by_precedence(paths: Iterable[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Exact ones, then prefixes; the longest of each first, of alike ones by the alphabet."""
    out = sorted(paths)
    out.sort(key=lambda at: len(at[0]), reverse=True)  # stable: of one length as before
    return [at for at in out if at[1]] + [at for at in out if not at[1]]


def _no_place(host: str, key: str, count: int, limit: int) -> Refusal:
    return Refusal(
        object=f"Ingress/{key}",
        field="spec.rules",
        reason="TooLarge",
        remedy=f"{host or 'Any host'} has {limit} paths already, of this Ingress and of older ones:"
        f" {count} of this one are not served. Use another host.",
    )


def _certificate(
    host: str,
    owner: str,
    ordered: tuple[Ingress, ...],
    store: Store,
    no: dict[str, list[Refusal]],
) -> str:
    """The Secret of a host ("": none): the first that its owner, a namespace, names.

    Another namespace's never counts, also where the owner has none.
    """
    certificate, of = "", ""
    for ingress in ordered:
        key = ingress.metadata.key
        tls = store.view(key).tls.get(host)
        if tls is None:
            continue
        if ingress.metadata.namespace != owner:
            remedy = (
                f"{host or 'Any host'} is of namespace {owner}, which named it first: that decides"
                f" about its certificate. Take {host or 'the entry'} out of tls, or choose another"
                " host."
            )
        elif not certificate:
            certificate, of = tls[0], key
            continue
        elif tls[0] != certificate:
            remedy = (
                f"Ingress {of}, which is older, serves {host} with Secret {certificate}."
                " Use that one."
            )
        else:
            continue
        no.setdefault(key, []).append(
            Refusal(
                object=f"Ingress/{key}", field=tls[1], reason="CertificateConflict", remedy=remedy
            )
        )
    return certificate


def _resolve(
    ingress: Ingress, path: PathView, store: Store, no: dict[str, list[Refusal]]
) -> str | None:
    """The Service port behind a path as "namespace/service/port"; None: a served 503."""
    key = ingress.metadata.key
    namespace = ingress.metadata.namespace
    field = DEFAULT if path.field == DEFAULT else f"{path.field}.backend"

    def refuse(part: str, reason: str, remedy: str, warning: bool = False) -> None:
        no.setdefault(key, []).append(
            Refusal(
                object=f"Ingress/{key}",
                field=f"{field}.service.{part}",
                reason=reason,
                remedy=remedy,
                warning=warning,
            )
        )

    service = store.service(f"{namespace}/{path.service}")
    wanted = path.port_name or path.port_number or ""
    if service is None:
        refuse(
            "name",
            "ServiceNotFound",
            f"Create Service {namespace}/{path.service} with port {wanted or 80}; until then: 503.",
        )
        return None
    if service.spec.type == "ExternalName":
        refuse(
            "name",
            "ExternalNameService",
            f"Service {namespace}/{path.service} is of type ExternalName, which has no endpoints"
            " here. Use a Service with EndpointSlices.",
        )
        return None
    port, by_target = backend_port(service, path)
    if port is None:
        has = ", ".join(
            f"{p.port} ({p.name})" if p.name else str(p.port)
            for p in service.spec.ports
            if p.protocol == "TCP"
        )
        refuse(
            "port",
            "PortNotFound",
            f"Service {namespace}/{path.service} has no TCP port {quoted(wanted)};"
            f" it has {has or 'none'}."
            if wanted
            else f"Name a port of Service {namespace}/{path.service}; it has {has or 'none'}.",
        )
        return None
    if problem := proxy_problem(service):
        refuse("name", "InvalidProxyProtocol", f"{problem} Clients are not told until then.", True)
    if by_target:
        refuse(
            "port",
            "PortMatchedByTargetPort",
            f"{wanted} is the targetPort of Service {namespace}/{path.service}:"
            f" write its port, {port.port}.",
            True,
        )
    return f"{namespace}/{path.service}/{port.port}"
