"""Ingresses of class avi-lb or nginx → Gateways and HTTPRoutes that answer the same.

A Gateway is made of what shares a VIP, so it can keep that address; a route is made of the hosts
of one Ingress that lead to the same.  What the older of two Ingresses has of a host stays its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import orjson
from msgspec import Struct

from akocore.config import Limits
from akocore.kube.objects import Ingress
from akocore.store import Store
from akocore.translate.classes import (
    CLASS_ANNOTATION,
    CONTROLLER,
    SETTING_ANNOTATION,
    default_class,
    setting_of_class,
)
from akocore.translate.gateway_api.budget import problem
from akocore.translate.ingress import ANY_HOST, DEFAULT, PathView, backend_port
from akocore.translate.migration.annotations import (
    Dialect,
    Features,
    Verdict,
    captured,
    read,
)

__all__ = ["Migration", "migrate"]

_API: Final = "gateway.networking.k8s.io/v1"
_RULES: Final = 16  # of a route, by the API
_MATCHES: Final = 64  # of a rule
_LISTENERS: Final = 64
_NGINX: Final = "k8s.io/ingress-nginx"
Manifest = dict[str, Any]


class Migration(Struct, frozen=True):
    """``verdicts``: on every annotation, and on what is otherwise not as before."""

    manifests: tuple[Manifest, ...]
    verdicts: tuple[Verdict, ...]


class _Source(Struct):
    """An Ingress that is to go."""

    ingress: Ingress
    dialect: Dialect
    setting: str
    features: Features


class _Gateway(Struct):
    """What shares a VIP and a setting."""

    name: str
    namespace: str
    address: str
    setting: str
    ports: dict[int, bool]  # port → with TLS
    tls: dict[str, str]  # host → Secret's key
    namespaces: set[str]
    annotations: dict[str, str]


def migrate(
    store: Store,
    dialects: Mapping[str, Dialect],
    *,
    gateway_class: str = "avi-lb",
    namespace: str = "",
    addresses: bool = True,
) -> Migration:
    """Manifests in place of the Ingresses of ``store``.

    ``dialects``: by class, which are taken; a class that is there says itself what it is.
    ``namespace``: of Gateways that serve several; "" for that of the first Ingress.
    """
    return _Run(store, dialects, gateway_class, namespace, addresses).run()


class _Run:
    def __init__(
        self,
        store: Store,
        dialects: Mapping[str, Dialect],
        gateway_class: str,
        namespace: str,
        addresses: bool,
    ) -> None:
        self.store = store
        self.dialects = dialects
        self.gateway_class = gateway_class
        self.namespace = namespace
        self.addresses = addresses
        self.verdicts: list[Verdict] = []
        self.gateways: dict[tuple[str, str], _Gateway] = {}
        self.owners: dict[tuple[str, str, bool], str] = {}  # host, path, exact → Ingress
        self.tls: dict[str, tuple[str, str]] = {}  # host → Secret, Ingress
        self.canaries: dict[tuple[str, str, bool], _Source] = {}
        self.routes: list[Manifest] = []
        self.parents: list[tuple[Manifest, _Gateway]] = []
        self.elsewhere: set[tuple[str, str, str]] = set()  # namespace, Service, namespace of user

    def say(self, key: str, field: str, verdict: Any, text: str) -> None:
        self.verdicts.append(
            Verdict(object=f"Ingress/{key}", field=field, verdict=verdict, text=text)
        )

    def run(self) -> Migration:
        sources = self._sources()
        for source in sources:
            self._claim(source)
        for source in sources:
            if source.features.canary is None:
                self._translate(source)
        gateways = self._gateways()
        for route, gateway in self.parents:
            if gateway.namespace != route["metadata"]["namespace"]:
                for ref in route["spec"]["parentRefs"]:
                    ref["namespace"] = gateway.namespace
        return Migration((*gateways, *self.routes), tuple(self.verdicts))

    # ── what there is ───────────────────────────────────────────────────────────────────────

    def _sources(self) -> list[_Source]:
        out: list[_Source] = []
        default = default_class(self.store)
        found = cast("dict[str, Ingress]", self.store.all("Ingress"))
        for key, ingress in sorted(
            found.items(), key=lambda one: (one[1].metadata.creation_timestamp, one[0])
        ):
            name = ingress.spec.ingress_class_name or ingress.metadata.annotation(CLASS_ANNOTATION)
            cls = self.store.ingress_class(name) if name else default
            dialect = self.dialects.get(name or "avi-lb")
            if cls is not None:
                of = {CONTROLLER: "avi", _NGINX: "nginx"}.get(cls.spec.controller)
                dialect = cast("Dialect | None", of) if name is None or dialect else dialect
            elif name is None:
                dialect = None
            if dialect is None:
                self.say(
                    key,
                    "spec.ingressClassName",
                    "ignored",
                    f"Class {name} is not migrated." if name else "It has no class of ours.",
                )
                continue
            features, verdicts = read(ingress, dialect)
            self.verdicts += verdicts
            for refusal in self.store.view(key).refusals:
                if dialect == "avi":
                    self.say(key, refusal.field, "note", f"It was not served: {refusal.remedy}")
                else:
                    self.say(key, refusal.field, "untranslatable", refusal.remedy)
            if dialect == "nginx" and not (features.regex or features.rewrite):
                self._prefixes(ingress)
            for asked in (features.auth, features.mirror):
                ref = asked["backendRef"] if asked is not None else {}
                if "namespace" in ref:
                    user = ingress.metadata.namespace
                    self.elsewhere.add((ref["namespace"], ref["name"], user))
            setting = (setting_of_class(cls) if cls else None) or ""
            namespace = self.store.namespace(ingress.metadata.namespace)
            if dialect == "avi" and not setting and namespace is not None:
                setting = namespace.metadata.annotation(SETTING_ANNOTATION) or ""
            out.append(_Source(ingress, dialect, setting if dialect == "avi" else "", features))
        return out

    def _prefixes(self, ingress: Ingress) -> None:
        for r, rule in enumerate(ingress.spec.rules):
            for p, path in enumerate(rule.http.paths if rule.http is not None else ()):
                if path.path_type == "ImplementationSpecific" and path.path not in ("", "/"):
                    self.say(
                        ingress.metadata.key,
                        f"spec.rules[{r}].http.paths[{p}].pathType",
                        "note",
                        f"To nginx {path.path} was the beginning of a text; it is one of whole path"
                        " elements from then on.",
                    )

    def _hosts(self, source: _Source) -> dict[str, tuple[PathView, ...]]:
        """The paths of each host, aliases and a default backend among them."""
        view = self.store.view(source.ingress.metadata.key)
        out = dict(view.hosts)
        if view.default is not None:
            for host in list(out):
                if all(path.path or path.exact for path in out[host]):
                    out[host] = (*out[host], view.default)
        for alias in source.features.aliases:
            first = next((paths for host, paths in view.hosts.items() if host), ())
            out.setdefault(alias, first)
        return out

    def _claim(self, source: _Source) -> None:
        """Of two Ingresses with a path of a host the older has it."""
        key = source.ingress.metadata.key
        for host, paths in self._hosts(source).items():
            tls = self.store.view(key).tls.get(host)
            if tls is not None:
                self.tls.setdefault(host, (tls[0], key))
            for path in paths:
                at = (host, path.path, path.exact)
                if source.features.canary is not None:
                    self.canaries.setdefault(at, source)
                elif self.owners.setdefault(at, key) != key and path.field != DEFAULT:
                    self.say(
                        key,
                        f"{path.field}.path",
                        "note",
                        f"Left out: Ingress {self.owners[at]}, which is older, has"
                        f" {host or 'any host'}{path.path or '/'}.",
                    )

    # ── Gateways ────────────────────────────────────────────────────────────────────────────

    def _gateway(self, source: _Source, host: str) -> _Gateway:
        points = source.ingress.status.load_balancer.ingress
        found = [point.ip for point in points if point.ip and point.hostname in ("", host)]
        address = found[0] if found and self.addresses else ""
        at = (address, source.setting)
        namespace = source.ingress.metadata.namespace
        if at not in self.gateways:
            parts = ["vip", address.replace(".", "-").replace(":", "-")] if address else ["ingress"]
            parts += [source.setting] if source.setting else []
            setting = self.store.setting(source.setting)
            network = setting.spec.network if setting is not None else None
            ports = {80: False, 443: True}
            for port in network.listeners if network is not None else ():
                ports[int(port.port)] = bool(port.enable_ssl)
            self.gateways[at] = _Gateway(
                "-".join(parts), namespace, address, source.setting, ports, {}, set(), {}
            )
        gateway = self.gateways[at]
        gateway.namespaces.add(namespace)
        gateway.annotations |= source.features.on_gateway
        if host in self.tls:
            gateway.tls[host] = self.tls[host][0]
        return gateway

    def _gateways(self) -> list[Manifest]:
        out: list[Manifest] = []
        classes = {
            "apiVersion": _API,
            "kind": "GatewayClass",
            "metadata": {"name": self.gateway_class},
            "spec": {"controllerName": CONTROLLER},
        }
        for gateway in self.gateways.values():
            if len(gateway.namespaces) > 1 and self.namespace:
                gateway.namespace = self.namespace
        grants: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
        for gateway in self.gateways.values():
            out.append(self._manifest(gateway))
            for secret in gateway.tls.values():
                namespace, _, name = secret.partition("/")
                if namespace != gateway.namespace:
                    at = (namespace, "Gateway", gateway.namespace)
                    grants.setdefault(at, set()).add(("Secret", name))
        for namespace, name, user in sorted(self.elsewhere):
            grants.setdefault((namespace, "HTTPRoute", user), set()).add(("Service", name))
        out += [_grant(*at, sorted(to)) for at, to in sorted(grants.items())]
        return [classes, *out] if out else []

    def _manifest(self, gateway: _Gateway) -> Manifest:
        allowed: Manifest = {"namespaces": {"from": "Same"}}
        if gateway.namespaces != {gateway.namespace}:
            expression = {
                "key": "kubernetes.io/metadata.name",
                "operator": "In",
                "values": sorted(gateway.namespaces),
            }
            allowed = {
                "namespaces": {"from": "Selector", "selector": {"matchExpressions": [expression]}}
            }
        listeners: list[Manifest] = []
        for port, tls in sorted(gateway.ports.items()):
            if not tls:
                listeners.append(
                    {
                        "name": _section(port, False, ""),
                        "port": port,
                        "protocol": "HTTP",
                        "allowedRoutes": allowed,
                    }
                )
                continue
            for host, secret in sorted(gateway.tls.items()):
                namespace, _, name = secret.partition("/")
                other = {} if namespace == gateway.namespace else {"namespace": namespace}
                listeners.append(
                    {
                        "name": _section(port, True, host),
                        "port": port,
                        "protocol": "HTTPS",
                        **({"hostname": host} if host else {}),
                        "tls": {"certificateRefs": [{"name": name, **other}]},
                        "allowedRoutes": allowed,
                    }
                )
        key = f"Gateway/{gateway.namespace}/{gateway.name}"
        if len(listeners) > _LISTENERS:
            self.verdicts.append(
                Verdict(
                    object=key,
                    field="spec.listeners",
                    verdict="untranslatable",
                    text=f"{len(listeners)} listeners are more than the {_LISTENERS} of a Gateway."
                    " Move the rest to ListenerSets, or let hosts share a wildcard certificate.",
                )
            )
        spec: Manifest = {"gatewayClassName": self.gateway_class}
        if gateway.address:
            spec["addresses"] = [{"type": "IPAddress", "value": gateway.address}]
            self.verdicts.append(
                Verdict(
                    object=key,
                    field="spec.addresses",
                    verdict="note",
                    text=f"{gateway.address} is the Ingresses' own until they are deleted: then it"
                    " goes over.",
                )
            )
        if gateway.setting:
            spec["infrastructure"] = {
                "parametersRef": {
                    "group": "ako.vmware.com",
                    "kind": "AviInfraSetting",
                    "name": gateway.setting,
                }
            }
        meta: Manifest = {"name": gateway.name, "namespace": gateway.namespace}
        if gateway.annotations:
            meta["annotations"] = dict(sorted(gateway.annotations.items()))
        return {
            "apiVersion": _API,
            "kind": "Gateway",
            "metadata": meta,
            "spec": spec | {"listeners": listeners},
        }

    # ── routes ──────────────────────────────────────────────────────────────────────────────

    def _translate(self, source: _Source) -> None:
        """The routes of one Ingress: hosts that lead to the same share one."""
        meta, features = source.ingress.metadata, source.features
        alike: dict[bytes, tuple[list[str], _Gateway, list[Manifest]]] = {}
        redirected: dict[str, tuple[list[str], _Gateway]] = {}
        for host, paths in self._hosts(source).items():
            gateway = self._gateway(source, host)
            tls = host in gateway.tls
            to_tls = features.redirect_all or (tls and features.redirect_tls)
            if to_tls:
                redirected.setdefault(gateway.name, ([], gateway))[0].append(host)
            rules = self._rules(source, host, paths)
            if rules and (tls or not to_tls):
                mark = orjson.dumps([gateway.name, gateway.setting, tls, to_tls, rules])
                alike.setdefault(mark, ([], gateway, rules))[0].append(host)
            if host.startswith("*.") and source.dialect == "avi":
                self.say(
                    meta.key,
                    f"host {host}",
                    "note",
                    "It stood for one label; a Gateway takes any number of them.",
                )
            self._other_spelling(source, host, gateway)
        for n, (hosts, gateway, rules) in enumerate(alike.values()):
            tls = hosts[0] in gateway.tls
            to_tls = features.redirect_all or (tls and features.redirect_tls)
            sections = [] if to_tls else self._plain(gateway)
            if tls:
                sections += self._secure(gateway, hosts)
            name = meta.name if len(alike) == 1 else f"{meta.name}-{_label(hosts[0], n)}"
            for part in range(0, len(rules), _RULES):
                more = f"-{part // _RULES + 1}" if part else ""
                self._route(source, name + more, gateway, sections, hosts, rules[part:][:_RULES])
        for hosts, gateway in redirected.values():
            port = next((p for p, secure in sorted(gateway.ports.items()) if secure), 443)
            redirect: Manifest = {"scheme": "https", "statusCode": features.redirect_status}
            if port != 443:
                redirect["port"] = port
            rule = {"filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]}
            several = f"-{gateway.name}" if len(redirected) > 1 else ""
            name = f"{meta.name}-to-https{several}"
            self._route(source, name, gateway, self._plain(gateway), hosts, [rule])

    def _plain(self, gateway: _Gateway) -> list[str]:
        return [_section(port, False, "") for port, tls in sorted(gateway.ports.items()) if not tls]

    def _secure(self, gateway: _Gateway, hosts: Iterable[str]) -> list[str]:
        ports = [port for port, tls in sorted(gateway.ports.items()) if tls]
        return [_section(port, True, host) for port in ports for host in hosts]

    def _route(
        self,
        source: _Source,
        name: str,
        gateway: _Gateway,
        sections: list[str],
        hosts: list[str],
        rules: list[Manifest],
    ) -> None:
        namespace = source.ingress.metadata.namespace
        meta: Manifest = {"name": name, "namespace": namespace}
        if source.features.on_route:
            meta["annotations"] = source.features.on_route
        named = [host for host in hosts if host != ANY_HOST]
        refs = [{"name": gateway.name, "sectionName": section} for section in sections]
        spec: Manifest = {"parentRefs": refs}
        if named:
            spec["hostnames"] = named
        manifest = {
            "apiVersion": _API,
            "kind": "HTTPRoute",
            "metadata": meta,
            "spec": spec | {"rules": rules},
        }
        self.routes.append(manifest)
        self.parents.append((manifest, gateway))

    def _rules(self, source: _Source, host: str, paths: Iterable[PathView]) -> list[Manifest]:
        """One rule for all matches that lead to the same."""
        key, features = source.ingress.metadata.key, source.features
        if features.whole_redirect is not None:
            return [
                {
                    "filters": [
                        {"type": "RequestRedirect", "requestRedirect": features.whole_redirect}
                    ]
                }
            ]
        out: dict[bytes, Manifest] = {}

        def put(match: Manifest, rest: Manifest) -> None:
            for n in range(1000):
                mark = orjson.dumps([n, rest])
                rule = out.setdefault(mark, {"matches": []} | rest)
                if len(rule["matches"]) < _MATCHES:
                    rule["matches"].append(match)
                    return

        if features.root:
            root = {"type": "ReplaceFullPath", "replaceFullPath": features.root}
            redirect = {"path": root, "statusCode": 302}
            put(
                {"path": {"type": "Exact", "value": "/"}},
                {"filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]},
            )
        for path in paths:
            if self.owners.get((host, path.path, path.exact)) != key:
                continue
            match, rewrite = self._match(source, path)
            filters = self._filters(features, rewrite)
            shared: Manifest = {"filters": filters} if filters else {}
            if features.session is not None:
                shared |= {"sessionPersistence": features.session}
            backend = self._backend(source, path)
            canary = self.canaries.get((host, path.path, path.exact))
            if canary is not None:
                for header, weighted in self._canary(canary, host, path, backend):
                    put(match | header, shared | {"backendRefs": weighted})
            else:
                put(match, shared | {"backendRefs": [backend]})
        return list(out.values())

    def _match(self, source: _Source, path: PathView) -> tuple[Manifest, Manifest | None]:
        """What a path matches, and how it is rewritten."""
        key, features = source.ingress.metadata.key, source.features
        value = path.path or "/"
        if source.dialect == "nginx" and features.rewrite and path.field != DEFAULT:
            field = f"{path.field}.path"
            idiom = captured(value, features.rewrite)
            if idiom is not None:
                prefix, new = idiom
                return (
                    {"path": {"type": "PathPrefix", "value": prefix or "/"}},
                    {"type": "ReplacePrefixMatch", "replacePrefixMatch": new},
                )
            if "$" in features.rewrite:
                self.say(
                    key,
                    field,
                    "untranslatable",
                    f"{features.rewrite} puts parts of {value} together; a URLRewrite filter has"
                    " a whole path or a prefix. Write one by hand.",
                )
                return self._expression(source, path, value), None
            whole = {"type": "ReplaceFullPath", "replaceFullPath": features.rewrite}
            regular = features.regex or re.search(r"[\^$*+?()|\[\]{}\\]", value)
            return self._expression(source, path, value) if regular else self._plain_match(
                path
            ), whole
        if features.regex and not path.exact and path.field != DEFAULT:
            return self._expression(source, path, value), None
        return self._plain_match(path), None

    def _plain_match(self, path: PathView) -> Manifest:
        kind = "Exact" if path.exact else "PathPrefix"
        return {"path": {"type": kind, "value": path.path or "/"}}

    def _expression(self, source: _Source, path: PathView, value: str) -> Manifest:
        text = f"(?i){value}.*"
        if wrong := problem(text, Limits())[1]:
            key = source.ingress.metadata.key
            self.say(key, f"{path.field}.path", "untranslatable", f"{wrong} Its rule is left out.")
        return {"path": {"type": "RegularExpression", "value": text}}

    def _filters(self, features: Features, rewrite: Manifest | None) -> list[Manifest]:
        out: list[Manifest] = []
        if features.cors is not None:
            out.append({"type": "CORS", "cors": features.cors})
        if features.auth is not None:
            out.append({"type": "ExternalAuth", "externalAuth": features.auth})
        if features.set_headers:
            headers = [{"name": k, "value": v} for k, v in sorted(features.set_headers.items())]
            out.append({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": headers}})
        if features.mirror is not None:
            out.append({"type": "RequestMirror", "requestMirror": features.mirror})
        url: Manifest = {"hostname": features.host} if features.host else {}
        if rewrite is not None:
            url["path"] = rewrite
        if url:
            out.append({"type": "URLRewrite", "urlRewrite": url})
        return out

    def _backend(self, source: _Source, path: PathView) -> Manifest:
        meta = source.ingress.metadata
        field = DEFAULT if path.field == DEFAULT else f"{path.field}.backend"
        service = self.store.service(f"{meta.namespace}/{path.service}")
        if service is None:
            if path.port_name or not path.port_number:
                self.say(
                    meta.key,
                    f"{field}.service.port",
                    "untranslatable",
                    f"A route needs the number of port {path.port_name or 'it means'}, and Service"
                    f" {path.service} is not given. Give it, or correct the 80 written here.",
                )
            elif self.store.all("Service"):
                self.say(
                    meta.key,
                    f"{field}.service.name",
                    "note",
                    f"There is no Service {path.service}: it was a 503, and will be a 500.",
                )
            return {"name": path.service, "port": path.port_number or 80}
        port, _ = backend_port(service, path)
        if port is None:
            self.say(
                meta.key,
                f"{field}.service.port",
                "note",
                f"Service {path.service} has no such port: it was a 503, and will be a 500.",
            )
            return {"name": path.service, "port": path.port_number or 80}
        return {"name": path.service, "port": int(port.port)}

    def _canary(
        self, canary: _Source, host: str, path: PathView, stable: Manifest
    ) -> list[tuple[Manifest, list[Manifest]]]:
        """Extra matches and their backends, most specific first."""
        asked = canary.features.canary
        assert asked is not None
        same = (host, path.path, path.exact)
        own = next(
            one for one in self._hosts(canary).get(host, ()) if (host, one.path, one.exact) == same
        )
        new = self._backend(canary, own)
        out: list[tuple[Manifest, list[Manifest]]] = []

        def by(name: str, kind: str, value: str, backend: Manifest) -> None:
            header = {"type": kind, "name": name, "value": value}
            out.append(({"headers": [header]}, [backend]))

        if asked.header and asked.value:
            by(asked.header, "Exact", asked.value, new)
        elif asked.header:
            by(asked.header, "Exact", "always", new)
            by(asked.header, "Exact", "never", stable)
        if asked.cookie:
            value = rf"(.*;\s*)?{re.escape(asked.cookie)}=always(;.*)?"
            by("Cookie", "RegularExpression", value, new)
        shares = [stable | {"weight": 100 - asked.weight}, new | {"weight": asked.weight}]
        out.append(({}, shares if asked.weight else [stable]))
        return out

    def _other_spelling(self, source: _Source, host: str, gateway: _Gateway) -> None:
        """``from-to-www-redirect``: www.a.test for a.test, or the other way round."""
        if not source.features.www or host == ANY_HOST or host.startswith("*."):
            return
        other = host[4:] if host.startswith("www.") else f"www.{host}"
        redirect = {"hostname": host, "statusCode": 308}
        rule = {"filters": [{"type": "RequestRedirect", "requestRedirect": redirect}]}
        name = f"{source.ingress.metadata.name}-{_label(other, 0)}"
        self._route(source, name, gateway, self._plain(gateway), [other], [rule])
        if host in gateway.tls:
            self.say(
                source.ingress.metadata.key,
                f"host {other}",
                "untranslatable",
                f"Over TLS {other} needs a listener of its own and a certificate that has it.",
            )


def _grant(namespace: str, kind: str, user: str, to: Iterable[tuple[str, str]]) -> Manifest:
    """Who in namespace ``user`` may name these of ``namespace``."""
    return {
        "apiVersion": _API,
        "kind": "ReferenceGrant",
        "metadata": {"name": f"{kind.lower()}s-of-{user}", "namespace": namespace},
        "spec": {
            "from": [{"group": _API.partition("/")[0], "kind": kind, "namespace": user}],
            "to": [{"group": "", "kind": what, "name": name} for what, name in to],
        },
    }


def _section(port: int, tls: bool, host: str) -> str:
    """A listener's name: http, https-a.example.test, http-8080 ..."""
    own = {80: "http"}.get(port, f"http-{port}") if not tls else "https"
    if tls and port != 443:
        own += f"-{port}"
    return f"{own}-{host.replace('*', 'wildcard')}" if host else own


def _label(host: str, n: int) -> str:
    return host.replace("*", "wildcard").replace(".", "-") or ("any" if not n else f"any-{n}")
