"""Names of Avi objects as AKO forms them (its naming of release 2.2).

``setting`` is the AviInfraSetting's name where it belongs into the name: always, except for
a setting that reaches the object through its Namespace's annotation.
"""

from __future__ import annotations

from hashlib import sha1

__all__ = ["Names"]


class Names:
    """Names under one cluster name.  ``evh``: as AKO's enhanced virtual hosting forms them."""

    def __init__(self, cluster: str, *, evh: bool = False) -> None:
        self.prefix = f"{cluster}--"
        self._gateways = f"ako-gw-{cluster}--"
        self.evh = evh

    def _encode(self, name: str) -> str:
        if not self.evh:
            return name
        return self.prefix + sha1(name.encode(), usedforsecurity=False).hexdigest()

    def _base(self, setting: str) -> str:
        return f"{self.prefix}{setting}-" if setting else self.prefix

    def shared(self, setting: str, shard: int) -> str:
        """The shared parent virtual service (and its VsVip, PoolGroup, redirect policy)."""
        kind = "Shared-L7-EVH-" if self.evh else "Shared-L7-"
        infra = f"{setting}-" if setting else ""
        return f"{self.prefix}{kind}{infra}{shard}"

    def dedicated(self, setting: str, host: str) -> str:
        """The virtual service (and VsVip) of one host alone."""
        name = self._encode(f"{self._base(setting)}{host}-L7-dedicated")
        return f"{name}-EVH" if self.evh else name

    def child(self, setting: str, host: str) -> str:
        """The virtual service of one TLS host under a shared parent, and its certificate."""
        return self._encode(f"{self._base(setting)}{host}")

    def insecure_pool(self, setting: str, host: str, path: str, namespace: str, name: str) -> str:
        """The pool of one path of a host without TLS, on the shared parent."""
        if self.evh:
            return self.child_pool(setting, host, path, namespace, name)
        return f"{self._base(setting)}{(host + path).replace('/', '_')}-{namespace}-{name}"

    def child_pool(
        self,
        setting: str,
        host: str,
        path: str,
        namespace: str,
        name: str,
        *,
        service: str = "",
        dedicated: bool = False,
    ) -> str:
        """The pool and PoolGroup of one path of a TLS host, or of a dedicated one.

        EVH pools also carry the ``service``; PoolGroups do not.
        """
        text = f"{self._base(setting)}{namespace}-{host}{path.replace('/', '_')}-{name}"
        if service and self.evh:
            text = f"{text}-{service}"
        return self._encode(f"{text}-L7-dedicated" if dedicated else text)

    def http_policy_set(self, setting: str, host: str, namespace: str) -> str:
        return self._encode(f"{self._base(setting)}{namespace}-{host}")

    def l4(self, namespace: str, name: str, family: str = "") -> str:
        """The virtual service (and VsVip, L4PolicySet) of a Gateway, a Service or a shared VIP.

        ``name``: the Gateway's, the Service's, or the key of the shared VIP.  ``family``: of the
        second one, where there are two, as in `l4_pool`.
        """
        end = f"-{family.lower()}" if family else ""
        return self._encode(f"{self.prefix}{namespace}-{name}{end}")

    def l4_pool(
        self,
        namespace: str,
        service: str,
        protocol: str,
        port: int,
        vip: str = "",
        family: str = "",
    ) -> str:
        """The pool of one Service port; ``vip``: the Gateway's name or the shared VIP's key.

        ``namespace``: of the virtual service.
        """
        end = [family.lower()] if family else []
        parts = [namespace, service, *([vip] if vip else []), protocol, str(port), *end]
        return self._encode(self.prefix + "-".join(parts))

    def gateway(self, namespace: str, name: str) -> str:
        """The virtual service (and VsVip) of a Gateway of the Gateway API."""
        return f"{self._gateways}{namespace}-{name}-EVH"
