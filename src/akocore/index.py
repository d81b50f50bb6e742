"""Keys by what they name.  Most names have one key, which is then kept without a set around it."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["Index"]


class Index:
    """Name → keys.  Every call costs what it is given, `get` what it returns."""

    def __init__(self) -> None:
        self._keys: dict[str, str | set[str]] = {}

    def get(self, name: str) -> Collection[str]:
        """The keys of a name; () when it has none."""
        found = self._keys.get(name, ())
        return (found,) if isinstance(found, str) else found

    def add(self, name: str, key: str) -> None:
        found = self._keys.setdefault(name, key)
        if isinstance(found, set):
            found.add(key)
        elif found != key:
            self._keys[name] = {found, key}

    def discard(self, name: str, key: str) -> None:
        """Raises `KeyError` when the name has no key."""
        found = self._keys[name]
        if isinstance(found, set):
            found.discard(key)
            if len(found) == 1:
                self._keys[name] = found.pop()
        elif found == key:
            del self._keys[name]
