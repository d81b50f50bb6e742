"""Groups, Networks and settings: what is in force, and what is refused of each.

A bad edit leaves the last good form of just that object in force; it is remembered.
"""

from __future__ import annotations

import contextlib
from base64 import b64decode

import msgspec

from akocore.claims import CLAIM
from akocore.config import Config
from akocore.faults import Faults, without_faulty
from akocore.kube.objects import (
    AviInfraSettingSpec,
    Network,
    NetworkSpec,
    Secret,
    ServiceEngineGroup,
    ServiceEngineGroupSpec,
)
from akocore.model import Refusal
from akocore.place.ipam import check_network, check_overlaps
from akocore.place.state import Facts
from akocore.place.virtual_services import Placement
from akocore.store import Store
from akocore.translate.classes import SCALE_OUT_ANNOTATION, Infra, infra_of
from akocore.translate.rhi import check_bgp, check_bgp_together, check_password, check_passwords

__all__ = ["Infrastructure"]


class Infrastructure:
    """What governs hosts.  `update` costs all settings, Networks and groups; they are few."""

    def __init__(
        self,
        config: Config,
        store: Store,
        facts: Facts,
        placement: Placement,
        faults: Faults | None = None,
        *,
        speaks_bgp: bool = False,
    ) -> None:
        self._faults = faults if faults is not None else Faults()
        self.infras: dict[str, Infra] = {}
        self.setting_refusals: dict[str, tuple[Refusal, ...]] = {}
        self.network_refusals: dict[str, tuple[Refusal, ...]] = {}
        self.groups: dict[str, ServiceEngineGroupSpec] = {}
        self.networks: dict[str, NetworkSpec] = {}
        self.speaks_bgp = speaks_bgp
        self.password_secrets: frozenset[str] = frozenset()  # of BGP peers, "namespace/name"
        self.passwords: dict[tuple[str, str], str] = {}  # the good ones of them
        self._config = config
        self._store = store
        self._facts = facts
        self._placement = placement

    def update(self) -> set[str]:
        """Work out all settings again; the names of those that came out differently."""
        self.groups = dict(self._config.service_engine_groups)
        for group in self._store.all("ServiceEngineGroup").values():
            if isinstance(group, ServiceEngineGroup):
                self.groups[group.metadata.name] = group.spec
        good = self._good_networks()
        self.networks = good
        self._read_passwords(good)
        changed_networks = self._placement.set_networks(good)
        before = self.infras
        self.infras = {}
        self.setting_refusals = {}
        for key in ("", *self._store.all("AviInfraSetting")):
            try:
                self._setting(key)
            except Exception as err:
                object_ = f"AviInfraSetting/{key}" if key else "Config"
                self.setting_refusals[key] = (self._faults.refusal(object_, err),)
        there = {*self._store.all("AviInfraSetting"), *map(_accepted, self._store.all("Network"))}
        for key in set(self._facts.room("accepted")) - there:
            if not key.startswith(CLAIM):
                self._facts.drop("accepted", key)
        return {
            key
            for key in {*before, *self.infras}
            if before.get(key) != self.infras.get(key)
            or (key in self.infras and not changed_networks.isdisjoint(self.infras[key].networks))
        }

    def refusals(self, kind: str, name: str) -> tuple[Refusal, ...]:
        """All that is refused of an AviInfraSetting or a Network."""
        known = self.setting_refusals if kind == "AviInfraSetting" else self.network_refusals
        return (*known.get(name, ()), *self._faults.of(f"{kind}/{name}"))

    def engines_of(self, group: str) -> int:
        """How many Service Engines serve each virtual service of a group."""
        spec = self.groups.get(group)
        return spec.min_se_per_vs if spec is not None else 1

    def _good_networks(self) -> dict[str, NetworkSpec]:
        """The Networks in force.  A bad edit leaves the last good form of just that Network.

        Of two that overlap the one stays that was there first, unchanged.
        """
        accepted = self._facts.room("accepted")
        order: list[tuple[bool, str, str, NetworkSpec]] = [
            (False, "", name, spec) for name, spec in self._config.networks.items()
        ]
        last: dict[str, NetworkSpec] = {}
        for obj in self._store.all("Network").values():
            assert isinstance(obj, Network)
            name = obj.metadata.name
            order = [one for one in order if one[2] != name]
            if fact := accepted.get(_accepted(name)):
                with contextlib.suppress(msgspec.DecodeError):  # of another release
                    last[name] = msgspec.json.decode(fact, type=NetworkSpec)
            changed = last.get(name) != obj.spec
            order.append((changed, obj.metadata.creation_timestamp, name, obj.spec))
        order.sort(key=lambda one: one[:3])
        self.network_refusals = {name: self._check(name, spec) for _, _, name, spec in order}
        good = {
            name: spec
            for _, _, name, spec in order
            if all(refusal.warning for refusal in self.network_refusals[name])
        }
        good = self._without_faulty(good)
        for name, refusal in check_overlaps(good).items():
            self.network_refusals[name] = (*self.network_refusals[name], refusal)
            del good[name]
        for name, refusals in self._check_together(good).items():
            self.network_refusals[name] = (*self.network_refusals[name], *refusals)
            del good[name]
        for name in [name for name in last if name not in good]:
            with_it = {**good, name: last[name]}
            if name not in check_overlaps(with_it) and not self._check_together(with_it):
                good[name] = last[name]
        for name in self._store.all("Network"):
            if name in good:
                fact = msgspec.json.encode(good[name]).decode()
                self._facts.put("accepted", _accepted(name), fact)
        return good

    def _without_faulty(self, good: dict[str, NetworkSpec]) -> dict[str, NetworkSpec]:
        """Those that can be compared with each other; the others are told."""

        def attempt(some: list[str]) -> None:
            with_them = {name: good[name] for name in some}
            check_overlaps(with_them)
            self._check_together(with_them)

        try:
            attempt(list(good))
        except Exception:
            kept, bad = without_faulty(good, attempt)
            for name, err in bad:
                said = self._faults.refusal(f"Network/{name}", err)
                self.network_refusals[name] = (*self.network_refusals[name], said)
            return {name: good[name] for name in kept}
        return good

    def _check(self, name: str, spec: NetworkSpec) -> tuple[Refusal, ...]:
        try:
            return self._problems(name, spec)
        except Exception as err:
            return (self._faults.refusal(f"Network/{name}", err),)

    def _problems(self, name: str, spec: NetworkSpec) -> tuple[Refusal, ...]:
        refusals = check_network(name, spec, speaks_bgp=self.speaks_bgp)
        return refusals or (check_bgp(name, spec) if self.speaks_bgp else ())

    def _read_passwords(self, networks: dict[str, NetworkSpec]) -> None:
        """Take in the Secrets of BGP peers, and say which are missing or no good."""
        if not self.speaks_bgp:
            return
        refs = [
            peer.password_secret
            for spec in networks.values()
            for peer in (spec.bgp.peers if spec.bgp is not None else ())
            if peer.password_secret is not None
        ]
        found: dict[tuple[str, str], str] = {}
        for ref in refs:
            if (secret := self._store.secret(f"{ref.namespace}/{ref.name}")) is not None:
                found[ref.namespace, ref.name] = _password(secret)
        for name, spec in networks.items():
            if refusals := check_passwords(name, spec, found):
                self.network_refusals[name] = (*self.network_refusals[name], *refusals)
        self.password_secrets = frozenset(f"{ref.namespace}/{ref.name}" for ref in refs)
        self.passwords = {
            ref: password
            for ref, password in found.items()
            if check_password("", "", password) is None
        }

    def _check_together(self, networks: dict[str, NetworkSpec]) -> dict[str, tuple[Refusal, ...]]:
        return check_bgp_together(networks) if self.speaks_bgp else {}

    def _setting(self, key: str) -> None:
        setting = self._store.setting(key) if key else None
        spec = setting.spec if setting is not None else None
        scale_out = (
            setting.metadata.annotation(SCALE_OUT_ANNOTATION) if setting is not None else None
        )

        def compiled(spec: AviInfraSettingSpec | None) -> tuple[Infra | None, tuple[Refusal, ...]]:
            return infra_of(
                key,
                spec,
                self._config.defaults,
                self.groups,
                self.networks,
                speaks_bgp=self.speaks_bgp,
                scale_out=scale_out,
            )

        infra, refusals = compiled(spec)
        if infra is None and key and (fact := self._facts.room("accepted").get(key)):
            last = msgspec.json.decode(fact, type=AviInfraSettingSpec)
            scale_out = None  # what is remembered is the rest
            infra, _ = compiled(last)
            if infra is None:  # its Network has no BGP any more: serve on, unannounced
                infra, _ = compiled(_without_rhi(last))
        elif infra is not None and spec is not None:
            self._facts.put("accepted", key, msgspec.json.encode(spec).decode())
        if infra is not None:
            self.infras[key] = infra
            pool = self._placement.pools[infra.network]
            if pool.size < infra.shard_size.shards:
                refusals += (
                    Refusal(
                        object=f"AviInfraSetting/{key}" if key else "Config",
                        field="spec.l7Settings.shardSize",
                        reason="InsufficientAddresses",
                        remedy=f"{infra.shard_size} needs {infra.shard_size.shards} addresses,"
                        f" Network {infra.network} has {pool.size}: widen its vipRanges or take a"
                        " smaller shardSize. The shards that have an address are served.",
                    ),
                )
        self.setting_refusals[key] = refusals


def _without_rhi(spec: AviInfraSettingSpec) -> AviInfraSettingSpec:
    if spec.network is None:
        return spec
    plain = msgspec.structs.replace(spec.network, enable_rhi=False, bgp_peer_labels=())
    return msgspec.structs.replace(spec, network=plain)


def _password(secret: Secret) -> str:
    """What its key ``password`` has; "": nothing that could be one."""
    if secret.string_data and "password" in secret.string_data:
        return secret.string_data["password"]
    text = (secret.data or {}).get("password", "")
    try:
        return b64decode(text, validate=True).decode().rstrip("\n")
    except ValueError:
        return ""


def _accepted(network: str) -> str:
    """The key of a Network among the accepted: no setting's name has an underscore."""
    return f"Network_{network}"
