"""Keys by what they name.  Most names have one key, which is then kept without a set around it."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

__all__ = ["Index", "Users"]


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


_T = TypeVar("_T", bound=Hashable)


class Users(Generic[_T]):
    """Thing → who uses it, and how many times.  Every call costs what it is given."""

    def __init__(self) -> None:
        self._users: dict[_T, str | dict[str, int]] = {}  # a str: this one, once

    def get(self, thing: _T) -> Collection[str]:
        found = self._users.get(thing, ())
        return (found,) if isinstance(found, str) else found

    def add(self, thing: _T, user: str) -> bool:
        """Whether nobody used it so far."""
        found = self._users.get(thing)
        if found is None:
            self._users[thing] = user
            return True
        if isinstance(found, str):
            found = self._users[thing] = {found: 1}
        found[user] = found.get(user, 0) + 1
        return False

    def discard(self, thing: _T, user: str) -> bool:
        """Whether nobody uses it any more.  Raises `KeyError` for one who did not."""
        found = self._users[thing]
        if isinstance(found, str):
            if found != user:
                raise KeyError(user)
            del self._users[thing]
            return True
        found[user] -= 1
        if not found[user]:
            del found[user]
        if not found:
            del self._users[thing]
        return not found
