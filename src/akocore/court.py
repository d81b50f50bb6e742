"""Hosts that engines refuse: what is at fault is found and left out, and all else is served.

First each part of the host (a rule of a route, a path of an Ingress) is tried alone.  If the host
is refused still, some of them are bad together: by halves it is found how many of the oldest are
good, and the next one is left out, until the host is good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Final, TypeVar, cast

from msgspec import Struct, field

from akocore.engines.envoy.resources import SRDS, Encoded
from akocore.model import HostModel
from akocore.model_http import HttpHost
from akocore.trials import Host, Name, Part, Trials, digest_of, name_of, parts_of

__all__ = ["Case", "Court"]

H = TypeVar("H", HttpHost, HostModel)

_ROUNDS: Final = 200  # of halving, of one host
_EACH, _WITHOUT, _SOME = "each", "without", "some"  # what is tried of a host


class Case(Struct):
    """A host that can be tried: where it is, and how it is published.

    ``scopes``: (group, name) that are published of it; ``encode``: a host in its place, by group;
    ``realise``: publish it again, as good as it is; ``age``: of a part of it, the oldest first.
    """

    model: Host
    groups: Collection[str]
    scopes: Collection[tuple[str, str]]
    encode: Callable[[Host], Iterable[tuple[str, Encoded]]]
    realise: Callable[[], None]
    age: Callable[[Part], Any]


class _Trial(Struct):
    """Of a host that is or was refused.

    ``tried``: the digest of the model that was tried last; ``stage``: what is tried now, "" when
    all is known.  ``numbers``: the publications that brought it to each group, -1: not yet.
    ``left``: digests of parts that are left out of this host, → why.
    ``order``: what is served of its parts, oldest first: the first ``good`` are good together, the
    first ``bad`` are not; ``tries``: the first so many are tried now, as ``digest``.
    """

    tried: str = ""
    stage: str = ""
    numbers: dict[str, int] = field(default_factory=dict)
    scopes: frozenset[tuple[str, str]] = frozenset()
    left: dict[str, str] = field(default_factory=dict)
    order: list[Part] = field(default_factory=list)
    good: int = 0
    bad: int = 0
    tries: int = 0
    digest: str = ""
    rounds: int = 0


class Court:
    """``left_out``: a part's name → hosts that do without it, and why; ``untold``: of these, what
    changed; who reads it clears it.  ``put``, ``drop``: of the `Realiser`.
    """

    def __init__(
        self, put: Callable[[str, Encoded], None], drop: Callable[[str, str, str], None]
    ) -> None:
        self.trials = Trials()
        self.left_out: dict[Name, dict[Hashable, str]] = {}
        self.untold: set[Name] = set()
        self._cases: dict[Hashable, _Trial] = {}
        self._trying: set[Hashable] = set()
        self._put = put
        self._drop = drop

    def trying(self, key: Hashable) -> bool:
        """Whether what is at fault of a host is not known yet."""
        return key in self._trying

    @property
    def busy(self) -> bool:
        return bool(self._trying)

    # ── of a host that is published ─────────────────────────────────────────────────────────

    def good(self, key: Hashable, model: H) -> H:
        """A host as good as it is known to be."""
        case = self._cases.get(key)
        if not self.trials.bad and (case is None or not case.left):
            return model
        left = case.left if case is not None else {}
        return cast(H, self.trials.without_bad(model, left))

    def concerns(self, key: Hashable) -> bool:
        """Whether `published` is to be called."""
        return bool(self.trials.bad) or key in self._cases

    def published(self, key: Hashable, case: Case) -> None:
        """A host was published: what of it is tried, or else refused, is as well."""
        trial = self._cases.get(key)
        if trial is None:
            if not self.trials.left_out(case.model, {}):
                return
            trial = self._cases[key] = _Trial()
        if trial.tried and trial.tried != digest_of(case.model):
            self._is_another(key, trial, case)
        self._publish(key, trial, case)

    def _is_another(self, key: Hashable, trial: _Trial, case: Case) -> None:
        """It is written otherwise now: what was bad together may be good."""
        trial.tried = ""
        self._end(key, trial)
        mine = {digest_of(part) for part in parts_of(case.model)}
        trial.left = {digest: why for digest, why in trial.left.items() if digest in mine}
        if trial.left:
            trial.tried, trial.good, trial.rounds = digest_of(case.model), 0, 0
            self._halve(key, trial, case, {}, all_of_it=True)

    def _publish(self, key: Hashable, trial: _Trial, case: Case) -> None:
        trial.numbers = {group: trial.numbers.get(group, -1) for group in case.groups}
        found = self.trials.each(case.model, all_of_it=trial.stage == _EACH)
        if trial.stage == _SOME:
            found.append(self.trials.together(case.model, trial.order[: trial.tries])[1])
        after: set[tuple[str, str]] = set()
        for host in found:
            for group, one in case.encode(host):
                self._put(group, one)
                after.add((group, one.name))
        for group, name in trial.scopes - after:
            self._drop(group, SRDS, name)
        trial.scopes = frozenset(after)
        left = self.trials.left_out(case.model, trial.left)
        self._tell(key, left)
        if not (trial.tried or trial.stage or trial.scopes or left):
            del self._cases[key]

    def gone(self, key: Hashable) -> None:
        """A host is served no more."""
        trial = self._cases.pop(key, None)
        if trial is not None:
            self._trying.discard(key)
            for group, name in trial.scopes:
                self._drop(group, SRDS, name)
            self._tell(key, {})

    def left_group(self, key: Hashable, group: str) -> None:
        """A host is in a group no more."""
        trial = self._cases.get(key)
        if trial is not None:
            mine = frozenset(one for one in trial.scopes if one[0] == group)
            for _, name in mine:
                self._drop(group, SRDS, name)
            trial.scopes -= mine
            trial.numbers.pop(group, None)

    def _tell(self, key: Hashable, parts: Mapping[Name, str]) -> None:
        """Which parts a host does without.  Cost: all that are left out anywhere."""
        for name in [name for name, hosts in self.left_out.items() if key in hosts]:
            if name not in parts:
                del self.left_out[name][key]
                self.untold.add(name)
                if not self.left_out[name]:
                    del self.left_out[name]
        for name, why in parts.items():
            if self.left_out.setdefault(name, {}).get(key) != why:
                self.left_out[name][key] = why
                self.untold.add(name)

    # ── what engines say ────────────────────────────────────────────────────────────────────

    def learn(self, refused: Mapping[str, str]) -> dict[str, str]:
        """Of refused scopes, by name: digests that are new, → `whereabouts`."""
        return dict(
            found
            for name, why in refused.items()
            if (found := self.trials.learn(name, why)) is not None
        )

    def judge(
        self,
        cases: Iterable[tuple[Hashable, Case]],
        refused: Mapping[str, str],
        learnt: Collection[str],
    ) -> None:
        """Begin to try those of the hosts that are refused.  Cost: their parts."""
        for key, case in cases:
            if key in self._trying:
                continue
            if learnt and any(digest_of(part) in learnt for part in parts_of(case.model)):
                case.realise()  # another replica tried it
            elif _why(case, refused):
                digest = digest_of(case.model)
                trial = self._cases.setdefault(key, _Trial())
                if trial.tried != digest:
                    trial.tried, trial.rounds, trial.good = digest, 0, 0
                    self._begin(key, trial, case, _EACH)
                    self._publish(key, trial, case)

    def begun(self, sequence_of: Callable[[str], int]) -> None:
        """After a publication: what is tried went with it."""
        for key in self._trying:
            numbers = self._cases[key].numbers
            for group, number in numbers.items():
                if number < 0:
                    numbers[group] = sequence_of(group)

    def judged(
        self,
        case_of: Callable[[Hashable], Case | None],
        acknowledged: Callable[[str], int],
        refused: Mapping[str, str],
    ) -> None:
        """What was tried is known: go on with these hosts.  Cost: the trials."""
        for key in list(self._trying):
            trial = self._cases[key]
            if all(0 <= number <= acknowledged(at) for at, number in trial.numbers.items()):
                case = case_of(key)
                if case is None:
                    self.gone(key)
                else:
                    self._go_on(key, trial, case, refused)

    def _go_on(self, key: Hashable, trial: _Trial, case: Case, refused: Mapping[str, str]) -> None:
        if trial.stage == _EACH:
            self._begin(key, trial, case, _WITHOUT)
            case.realise()
        elif trial.stage == _SOME:
            self._found(key, trial, case, refused)
        elif (
            _why(case, refused)
            and trial.rounds < _ROUNDS
            and self.trials.good(case.model, trial.left)  # there is more to leave out
        ):
            self._halve(key, trial, case, trial.left)
            self._publish(key, trial, case)
        else:
            self._end(key, trial)
            self.untold.update(name_of(case.model, part) for part in parts_of(case.model))

    def _halve(
        self,
        key: Hashable,
        trial: _Trial,
        case: Case,
        left: Mapping[str, str],
        *,
        all_of_it: bool = False,
    ) -> None:
        """Try some of the parts that are good alone; ``all_of_it``: all, as they may be good."""
        served = sorted(self.trials.good(case.model, left), key=lambda two: case.age(two[0]))
        trial.order = [one for _, one in served]
        trial.bad = len(trial.order) + all_of_it
        trial.good = min(trial.good, max(len(trial.order) - 1, 0))
        trial.tries = len(trial.order) if all_of_it else (trial.good + trial.bad) // 2
        self._try(key, trial, case)

    def _try(self, key: Hashable, trial: _Trial, case: Case) -> None:
        trial.rounds += 1
        trial.digest = self.trials.together(case.model, trial.order[: trial.tries])[0]
        self._begin(key, trial, case, _SOME)

    def _found(self, key: Hashable, trial: _Trial, case: Case, refused: Mapping[str, str]) -> None:
        """Whether the first so many are good together is known."""
        if (why := self.trials.bad.get(trial.digest)) is not None:
            trial.bad = trial.tries
        else:
            trial.good = trial.tries
        if trial.good >= len(trial.order):
            trial.left.clear()  # all of it is good now
        elif trial.bad - trial.good > 1 and trial.rounds < _ROUNDS:
            trial.tries = (trial.good + trial.bad) // 2
            self._try(key, trial, case)
            self._publish(key, trial, case)
            return
        else:
            last = digest_of(trial.order[trial.good])
            trial.left[last] = why or _why(case, refused) or trial.left.get(last, "")
        self._begin(key, trial, case, _WITHOUT)
        case.realise()

    def _begin(self, key: Hashable, trial: _Trial, case: Case, stage: str) -> None:
        trial.stage, trial.numbers = stage, dict.fromkeys(case.groups, -1)
        self._trying.add(key)

    def _end(self, key: Hashable, trial: _Trial) -> None:
        trial.stage, trial.order = "", []
        self._trying.discard(key)


def _why(case: Case, refused: Mapping[str, str]) -> str:
    """Why a host is refused; "": it is not."""
    return next((refused[name] for _, name in case.scopes if name in refused), "")
