"""What must be remembered, kept in the cluster: so the next leader goes on where this one ended.

An address is one VsVip object, named by the address: the API server lets only one of that name be
made, so no two replicas can give an address away twice (optimistic concurrency, as the Service IP
allocator of Kubernetes does it: KEP-1880).  The last accepted form of each setting is a key of one
ConfigMap.  Where a host belongs is AKO's function of its name and need not be stored.

Facts are what this replica believes; objects are what the cluster has.  `flush` makes the objects
follow the facts, and only while this replica leads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import cast

import msgspec
import orjson
from msgspec import Struct

from akocore.kube.api import ApiError, ApiServer, resources
from akocore.kube.objects import Change, VsVip
from akocore.place.state import StateError

__all__ = ["ClusterFacts", "vip_name"]

log = logging.getLogger(__name__)

_CONFIG_MAP = "akocore-accepted"
_KEY = "akocore.io/virtual-service-of"  # annotation: whose it is, as names may be alike
_AT_ONCE = 16
_TIMEOUT_S = 5.0
_LOAD_RETRY_S = (0.1, 5.0)


class _ConfigMap(Struct):
    data: dict[str, str] | None = None


class _Kept(Struct, frozen=True):
    """A VsVip as the cluster has it.  ``uid``: no other of that name is ever deleted for it."""

    owner: str  # "network/virtual service"
    uid: str
    key: str  # of that virtual service; "": it was made before these were written


def _kept(vip: VsVip) -> _Kept:
    owner = f"{vip.spec.network}/{vip.spec.virtual_service}"
    return _Kept(owner, vip.metadata.uid, vip.metadata.annotation(_KEY) or "")


def vip_name(address: str) -> str:
    """The name of an address's VsVip: IPv4 as it is, IPv6 in full with dashes."""
    ip = ip_address(address)
    return str(ip) if ip.version == 4 else ip.exploded.replace(":", "-")


class ClusterFacts:
    """`Facts` of a cluster.  ``leads()``: whether we may write, asked before every write.

    ``on_taken(address)``: the cluster says that an address which we gave away is another's.
    """

    def __init__(self, api: ApiServer, namespace: str, leads: Callable[[], bool]) -> None:
        self.on_taken: Callable[[str], None] = lambda _address: None
        self.revision = 0  # the newest VsVip that we have made
        self._api = api
        self._leads = leads
        self._vips = resources()["VsVip"]
        self._config_maps = f"/api/v1/namespaces/{namespace}/configmaps"
        self._rooms: dict[str, dict[str, str]] = {"vip": {}, "accepted": {}, "owner": {}}
        self._owners: dict[str, str] = {}  # address → "network/virtual service" as believed
        self._objects: dict[str, _Kept] = {}  # address → as the cluster has it
        self._written: dict[str, str] = {}  # settings as the cluster has them
        self._vips_due: dict[str, None] = {}
        self._settings_due: dict[str, None] = {}
        self._led = False  # when it was last flushed

    # ── facts ───────────────────────────────────────────────────────────────────────────────

    def room(self, name: str) -> Mapping[str, str]:
        return self._rooms.get(name, {})

    def put(self, room: str, key: str, value: str) -> None:
        facts = self._rooms.get(room)
        if facts is None or facts.get(key) == value:
            return  # a room that need not be kept, or known
        if room == "vip":
            if (old := facts.get(key)) is not None:
                self._owners.pop(old, None)
                self._vips_due[old] = None
            self._owners[value] = key
            self._vips_due[value] = None
        elif room == "accepted":
            self._settings_due[key] = None
        facts[key] = value

    def drop(self, room: str, key: str) -> None:
        value = self._rooms.get(room, {}).pop(key, None)
        if value is None:
            return
        if room == "vip":
            self._owners.pop(value, None)
            self._vips_due[value] = None
        elif room == "accepted":
            self._settings_due[key] = None

    # ── what the cluster has ────────────────────────────────────────────────────────────────

    async def load(self) -> None:
        """Read the accepted settings; waits for the API server as long as it takes.

        Raises `StateError` when it says that we may not.
        """
        wait, longest = _LOAD_RETRY_S
        while True:
            try:
                raw = await self._api.request("GET", f"{self._config_maps}/{_CONFIG_MAP}")
            except ApiError as err:
                if err.code == 404:
                    return
                if err.code in (401, 403):
                    raise StateError(
                        f"what is remembered in the cluster can't be read: {err}."
                        " Run `akocore install`, or give another --namespace or --kubeconfig."
                    ) from err
                log.warning("event=facts_not_read why=%r", str(err))
            except TimeoutError:
                log.warning("event=facts_not_read why='timeout'")
            else:
                self._written = msgspec.json.decode(raw, type=_ConfigMap).data or {}
                self._rooms["accepted"].update(self._written)
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    def heard(self, change: Change) -> str:
        """Take in a VsVip as the cluster has it."""
        vip = cast("VsVip | None", change.obj)
        if vip is None:
            address = next((a for a in self._objects if vip_name(a) == change.key), change.key)
            self._objects.pop(address, None)
        else:
            address, kept = vip.spec.address, _kept(vip)
            self._objects[address] = kept
            if kept.key:
                self._rooms["owner"].setdefault(vip.spec.virtual_service, kept.key)
        if self.believed(address) != self.kept(address) or self._is_mute(address):
            self._vips_due[address] = None
        return address

    def whose(self, address: str) -> tuple[str, str]:
        kept = self._objects.get(address)
        return (kept.owner.partition("/")[2], kept.key) if kept is not None else ("", "")

    def _is_mute(self, address: str) -> bool:
        """Whether an object doesn't say whose it is, as we know it."""
        name, key = self.whose(address)
        return self._rooms["owner"].get(name, key) != key

    def believed(self, address: str) -> str | None:
        return self._owners.get(address)

    def kept(self, address: str) -> str | None:
        kept = self._objects.get(address)
        return None if kept is None else kept.owner

    def believe(self, address: str) -> None:
        """Take the cluster's word for an address."""
        if (old := self._owners.pop(address, None)) is not None:
            self._rooms["vip"].pop(old, None)
        if (owner := self.kept(address)) is not None:
            if (other := self._rooms["vip"].get(owner)) is not None:
                self._owners.pop(other, None)
                self._vips_due[other] = None
            self._rooms["vip"][owner] = address
            self._owners[address] = owner
        self._vips_due.pop(address, None)

    def unwritten(self) -> list[str]:
        return list(self._vips_due)

    @property
    def waiting(self) -> int:
        """What a leader has yet to write; a follower has nothing to write."""
        return len(self._vips_due) + len(self._settings_due) if self._leads() else 0

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    async def flush(self) -> None:
        leads = self._leads()
        if leads and not self._led:
            self._vips_due |= {address: None for address in self._objects if self._is_mute(address)}
        self._led = leads
        if not (self._vips_due or self._settings_due) or not leads:
            return
        due, self._vips_due = list(self._vips_due), {}
        failed: list[ApiError | TimeoutError] = []
        queue = iter(due)

        async def work() -> None:
            for address in queue:
                try:
                    await self._write_vip(address)
                except (ApiError, TimeoutError) as err:
                    self._vips_due[address] = None
                    failed.append(err)

        await asyncio.gather(*(work() for _ in range(min(_AT_ONCE, len(due)))))
        if self._settings_due:
            settings, self._settings_due = self._settings_due, {}
            try:
                await self._write_settings(settings)
            except (ApiError, TimeoutError) as err:
                self._settings_due = settings | self._settings_due
                failed.append(err)
        if failed:
            what = str(failed[0]) or "timeout"
            hint = (
                " Run `akocore install`."
                if isinstance(failed[0], ApiError) and failed[0].code in (403, 404)
                else ""
            )
            raise StateError(
                f"placement can't be kept in the cluster: {what}.{hint}"
                " It is kept in memory and written again."
            )

    async def _write_vip(self, address: str) -> None:
        """Make the object of one address say what we believe."""
        want, kept = self._owners.get(address), self._objects.get(address)
        if not self._leads():
            return
        path = self._vips.path(name=vip_name(address))
        if want == self.kept(address):
            if kept is not None and self._is_mute(address):
                await self._write_key(path, kept)
            return
        if kept is not None:
            body = orjson.dumps({"preconditions": {"uid": kept.uid}} if kept.uid else {})
            try:
                await self._api.request("DELETE", path, None, body, timeout_s=_TIMEOUT_S)
            except ApiError as err:
                if err.code == 409:  # another one of that name: the watch brings it
                    return
                if err.code != 404:
                    raise
            if self._objects.get(address) == kept:
                del self._objects[address]
        if want is None or not self._leads():
            return
        network, _, service = want.partition("/")
        key = self._rooms["owner"].get(service, "")
        made = {
            "apiVersion": self._vips.api_version,
            "kind": "VsVip",
            "metadata": {
                "name": vip_name(address),
                **({"annotations": {_KEY: key}} if key else {}),
            },
            "spec": {"address": address, "network": network, "virtualService": service},
        }
        try:
            raw = await self._api.request(
                "POST", self._vips.path(), None, orjson.dumps(made), timeout_s=_TIMEOUT_S
            )
        except ApiError as err:
            if err.code != 409:
                raise
            raw = await self._api.request("GET", path, timeout_s=_TIMEOUT_S)
        made_so = msgspec.json.decode(raw, type=VsVip)
        self.revision = max(self.revision, int(made_so.metadata.resource_version or 0))
        found = self._objects[address] = _kept(made_so)
        if found.owner != want:
            self.on_taken(address)

    async def _write_key(self, path: str, kept: _Kept) -> None:
        """Say whose an address is that stays where it is."""
        key = self._rooms["owner"][kept.owner.partition("/")[2]]
        patch = {"metadata": {"uid": kept.uid, "annotations": {_KEY: key}}}
        if not kept.uid:
            del patch["metadata"]["uid"]
        body = orjson.dumps(patch)
        try:
            raw = await self._api.request(
                "PATCH", path, None, body, "application/merge-patch+json", _TIMEOUT_S
            )
        except ApiError as err:
            if err.code in (404, 409):  # it is gone, or another's: the watch says so
                return
            raise
        self._objects[msgspec.json.decode(raw, type=VsVip).spec.address] = msgspec.structs.replace(
            kept, key=key
        )

    async def _write_settings(self, names: Mapping[str, None]) -> None:
        facts = self._rooms["accepted"]
        patch = {n: facts.get(n) for n in names if facts.get(n) != self._written.get(n)}
        if not patch:
            return
        path = f"{self._config_maps}/{_CONFIG_MAP}"
        body = orjson.dumps({"data": patch})
        try:
            await self._api.request(
                "PATCH", path, None, body, "application/merge-patch+json", _TIMEOUT_S
            )
        except ApiError as err:
            if err.code != 404:
                raise
            made = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": _CONFIG_MAP},
                "data": {name: value for name, value in patch.items() if value is not None},
            }
            await self._api.request(
                "POST", self._config_maps, None, orjson.dumps(made), timeout_s=_TIMEOUT_S
            )
        for name, value in patch.items():
            if value is None:
                self._written.pop(name, None)
            else:
                self._written[name] = value

    def close(self) -> None:
        """Nothing is open here."""
