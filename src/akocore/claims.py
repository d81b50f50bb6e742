"""Whose a host of Ingresses is: the namespace's that named it first; and who may join it.

An Ingress names a host since its creation, or since an edit that came later: one that is old and
names somebody else's host from today on is no older there than today.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from hashlib import sha1
from typing import cast

from msgspec import Struct

from akocore.kube.objects import Ingress
from akocore.model import Refusal
from akocore.place.state import Facts
from akocore.store import Store

__all__ = ["CLAIM", "Claims", "Joined"]

CLAIM = "Claim_"  # begins the key of a fact among the accepted: no setting's name has an underscore
_MOST = 2000  # a ConfigMap must hold them; who comes after these is as old as its Ingress
_ROOM = "accepted"


class Joined(Struct, frozen=True):
    """An Ingress has joined a host that is another namespace's."""

    host: str
    owner: str  # its oldest Ingress
    guest: str


class Claims:
    """Who names which host since when, as far as it takes more than the Ingresses to know.

    ``strict``: a host is one namespace's alone.  ``joined``: who reads it clears it.
    """

    def __init__(
        self, store: Store, facts: Facts, now: Callable[[], datetime], *, strict: bool
    ) -> None:
        self.joined: list[Joined] = []
        self._store = store
        self._facts = facts
        self._now = now
        self._strict = strict
        self._guests: dict[str, frozenset[str]] = {}  # host → Ingresses of other namespaces there

    # ── since when ──────────────────────────────────────────────────────────────────────────

    def age(self, ingress: Ingress, host: str) -> tuple[str, str]:
        """Of two claims of a host the lesser came first."""
        meta = ingress.metadata
        created = meta.creation_timestamp or "~"
        late = self._facts.room(_ROOM).get(_fact(meta.key, host), "")
        return max(created, late), meta.key

    def take(self, key: str, before: Collection[str]) -> None:
        """An Ingress that named the hosts ``before`` was edited.  Cost: those it names anew.

        They come after what Ingresses of other namespaces name already.
        """
        after = self._store.hosts_of(key)
        for host in before:
            if host not in after:
                self._facts.drop(_ROOM, _fact(key, host))
        for host in after:
            if host not in before:
                self._come_late(key, host)

    def _come_late(self, key: str, host: str) -> None:
        namespace = key.partition("/")[0]
        first = [
            self.age(cast(Ingress, self._store.ingress(one)), host)[0]
            for one in self._store.ingresses_of_host(host)
            if one.partition("/")[0] != namespace
        ]
        if first and sum(fact.startswith(CLAIM) for fact in self._facts.room(_ROOM)) < _MOST:
            now = f"{self._now():%Y-%m-%dT%H:%M:%SZ}"
            self._facts.put(_ROOM, _fact(key, host), f"{max(now, *first)}~")

    def forget_absent(self) -> None:
        """Keep what is remembered of Ingresses that are there, and name the host still."""
        known = [key for key in self._facts.room(_ROOM) if key.startswith(CLAIM)]
        if not known:
            return
        keys = self._store.all("Ingress")
        stay = {_fact(key, host) for key in keys for host in self._store.hosts_of(key)}
        for fact in known:
            if fact not in stay:
                self._facts.drop(_ROOM, fact)

    # ── who is served ───────────────────────────────────────────────────────────────────────

    def admit(
        self, host: str, claims: list[tuple[Ingress, str]]
    ) -> tuple[list[Ingress], dict[str, list[Refusal]]]:
        """Of the Ingresses that name a host, with their settings, oldest first: who is served.

        The setting is the oldest's, and so is the host where namespaces don't share one.  Refusals
        by Ingress key.
        """
        first, setting = claims[0]
        owner = first.metadata.namespace
        mine: list[Ingress] = []
        no: dict[str, list[Refusal]] = {}
        for ingress, other in claims:
            if self._strict and ingress.metadata.namespace != owner:
                remedy = (
                    f"{host or 'Any host'} is of namespace {owner}, whose Ingress"
                    f" {first.metadata.key} named it first. Choose another host, or let an"
                    " administrator share hosts: L7Settings.fqdnReusePolicy InterNamespaceAllowed."
                )
            elif other != setting:
                remedy = (
                    f"{host or 'Any host'} is served for Ingress {first.metadata.key} under"
                    " another class or setting, which came first. Use its class or another host."
                )
            else:
                mine.append(ingress)
                continue
            no[ingress.metadata.key] = [_refused(host, ingress, remedy)]
        self._look_at_guests(host, mine)
        return mine, no

    def nobody(self, host: str) -> None:
        """No Ingress of ours names a host any more."""
        self._guests.pop(host, None)

    def _look_at_guests(self, host: str, mine: list[Ingress]) -> None:
        """Say who has joined a host of another namespace, once."""
        before = self._guests.pop(host, frozenset())
        if len(mine) == 1:
            return
        owner = mine[0].metadata
        guests = [one.metadata.key for one in mine if one.metadata.namespace != owner.namespace]
        if guests:
            self._guests[host] = frozenset(guests)
            self.joined += [Joined(host, owner.key, one) for one in guests if one not in before]


def _refused(host: str, ingress: Ingress, remedy: str) -> Refusal:
    rules = [rule.host for rule in ingress.spec.rules]
    field = f"spec.rules[{rules.index(host)}].host" if host in rules else "spec.defaultBackend"
    return Refusal(
        object=f"Ingress/{ingress.metadata.key}",
        field=field,
        reason="HostClaimed",
        remedy=remedy,
    )


def _fact(key: str, host: str) -> str:
    text = f"{host} {key}".encode("utf-8", "surrogatepass")
    return CLAIM + sha1(text, usedforsecurity=False).hexdigest()
