"""How many VIPs of a Network each namespace has, and who waits until one of these goes."""

from __future__ import annotations

from collections import Counter

__all__ = ["Quota"]

Key = tuple[str, str]  # (Network, namespace)


class Quota:
    """Accounts alone: limits are the Networks'.  Every call costs what it is given."""

    def __init__(self) -> None:
        self.of_network: Counter[str] = Counter()  # Network → virtual services that have a VIP
        self._has: dict[Key, set[str]] = {}
        self._waits: dict[Key, dict[str, None]] = {}  # in the order in which they came
        self._waiting: dict[str, Key] = {}
        self._freed: set[Key] = set()

    def took(self, network: str, namespace: str, vs: str) -> None:
        """A virtual service has a VIP there."""
        has = self._has.setdefault((network, namespace), set())
        if vs not in has:
            has.add(vs)
            self.of_network[network] += 1
        self.forget(vs)

    def left(self, network: str, namespace: str, vs: str) -> None:
        """It has none there any more."""
        key = (network, namespace)
        has = self._has.get(key, set())
        if vs in has:
            has.discard(vs)
            self.of_network[network] -= 1
            if key in self._waits:
                self._freed.add(key)
        if not has:
            self._has.pop(key, None)

    def has(self, network: str, namespace: str) -> int:
        return len(self._has.get((network, namespace), ()))

    def wait(self, network: str, namespace: str, vs: str) -> None:
        """It may have none until another of its namespace has gone."""
        key = (network, namespace)
        if self._waiting.get(vs) != key:
            self.forget(vs)
            self._waiting[vs] = key
            self._waits.setdefault(key, {})[vs] = None

    def forget(self, vs: str) -> None:
        """It waits no more."""
        key = self._waiting.pop(vs, None)
        if key is not None:
            waits = self._waits[key]
            del waits[vs]
            if not waits:
                del self._waits[key]
                self._freed.discard(key)

    def free_all(self) -> None:
        """All that wait are to be looked at again."""
        self._freed.update(self._waits)

    @property
    def freed(self) -> bool:
        """Whether something went that somebody waits for."""
        return bool(self._freed)

    def again(self) -> list[list[str]]:
        """Of each namespace where something went: who waits, first come first served."""
        freed, self._freed = self._freed, set()
        return [list(self._waits.get(key, ())) for key in sorted(freed)]
