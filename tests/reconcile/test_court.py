"""What of a host is left out, whatever its parts are refused for: alone, or just together."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from akocore.court import Case, Court
from akocore.engines.envoy.resources import SRDS, Encoded
from akocore.model import HostModel, Pool, Route
from akocore.trials import Host, Part

Bad = frozenset[str]  # paths that are refused when all of them are there

KEY = ("", "a.test")


def part(path: str, version: int = 1) -> Route:
    return Route(path, False, Pool(f"pool-{version}", "d/s/80"))


class Fleet:
    """One engine, which takes a scope unless all paths of one of ``bad`` lead somewhere in it."""

    def __init__(self, bad: Collection[Bad]) -> None:
        self.bad = bad
        self.has: dict[str, HostModel] = {}
        self.sequence = 0
        self.court = Court(self._put, self._drop)
        self.model = HostModel("a.test", "", (), "", False)

    def _put(self, _group: str, one: Encoded) -> None:
        self.has[one.name] = msgspec.msgpack.decode(one.frame, type=HostModel)

    def _drop(self, _group: str, _type: str, name: str) -> None:
        del self.has[name]

    def refuses(self, model: HostModel) -> bool:
        open_ = {route.path for route in model.routes if not route.answer}
        return any(paths <= open_ for paths in self.bad)

    @property
    def served(self) -> HostModel:
        return self.has["x/a.test"]

    def write(self, *routes: Route) -> None:
        self.model = msgspec.structs.replace(self.model, routes=routes)
        self._realise()
        for _ in range(500):
            refused = {name: "why" for name, one in self.has.items() if self.refuses(one)}
            learnt = self.court.learn(refused)
            self.court.judge([(KEY, self._case())], refused, learnt)
            self.court.judged(lambda _key: self._case(), lambda _: self.sequence, refused)
            self.sequence += 1
            self.court.begun(lambda _group: self.sequence)
            if not self.court.busy:
                return
        raise AssertionError("it is never over")

    def _realise(self) -> None:
        self._put("g", self._one(self.court.good(KEY, self.model)))
        if self.court.concerns(KEY):
            self.court.published(KEY, self._case())

    @staticmethod
    def _one(model: Host) -> Encoded:
        return Encoded(SRDS, f"x/{model.host}", msgspec.msgpack.encode(model))

    def _case(self) -> Case:
        def encode(model: Host) -> Iterable[tuple[str, Encoded]]:
            return [("g", self._one(model))]

        def age(one: Part) -> int:
            assert isinstance(one, Route)
            return int(one.path[1:])

        scopes = [("g", "x/a.test")]
        return Case(self.model, {"g"}, scopes, encode, self._realise, age)


def _left_out(fleet: Fleet) -> set[str]:
    return {one[1] for one in fleet.court.left_out}


paths = st.integers(0, 11).map(lambda n: f"/{n}")
bads = st.lists(st.frozensets(paths, min_size=1, max_size=3), max_size=4)


@settings(deadline=None)
@given(bads, st.lists(paths, min_size=1, unique=True), st.lists(paths, unique=True))
def test_just_what_is_bad_with_what_is_older_is_left_out(
    bad: list[Bad], first: list[str], then: list[str]
) -> None:
    fleet = Fleet(bad)
    for version, written in enumerate((first, then)):
        fleet.write(*(part(path, version) for path in written))
        assert not fleet.refuses(fleet.served)
        kept: set[str] = set()
        for path in sorted(written, key=lambda path: int(path[1:])):
            if not any(paths <= kept | {path} for paths in bad):
                kept.add(path)
        assert _left_out(fleet) == set(written) - kept
        assert {route.path for route in fleet.served.routes if not route.answer} == kept
        assert {route.path for route in fleet.served.routes} == set(written)


@given(st.permutations([f"/{n}" for n in range(8)]))
def test_who_is_good_again_without_another_is_served_again(written: list[str]) -> None:
    fleet = Fleet([frozenset({"/2", "/5"})])
    fleet.write(*(part(path) for path in written))
    assert _left_out(fleet) == {"/5"}
    fleet.write(*(part(path) for path in written if path != "/2"))
    assert _left_out(fleet) == set()
    assert len(fleet.has) == 1  # no trial is left
