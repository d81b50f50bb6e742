"""What an engine of one replica has, in the numbers of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, field

from akocore.revisions import Received, Revisions, reaches

GROUP = "g"


class Reader(Struct):
    """A replica: reads streams at its own pace, and publishes when it feels like it."""

    streams: dict[str, list[int]]
    revisions: Revisions = field(default_factory=Revisions)
    read: dict[str, int] = field(default_factory=dict)
    number: int = 0
    behind: list[dict[str, int]] = field(default_factory=lambda: [{}])  # of each publication

    def go_on(self, kind: str) -> None:
        """Read the next version of a kind, if there is one."""
        left = [v for v in self.streams[kind] if v > self.read.get(kind, 0)]
        if left:
            self.read[kind] = left[0]

    def publish(self, *, nothing: bool) -> None:
        if not nothing:
            self.number += 1
            self.behind.append(dict(self.read))
        self.revisions.mark(Received(dict(self.read), dict(self.read)), {GROUP: self.number})


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["one", "other"]),
        st.sampled_from(["Ingress", "Service", "publish", "publish nothing"]),
    ),
    max_size=80,
)


@given(STEPS, st.data())
def test_an_engine_counts_for_what_it_has_and_in_the_end_for_all(
    steps: list[tuple[str, str]], data: st.DataObject
) -> None:
    streams = {"Ingress": list(range(1, 40, 3)), "Service": list(range(2, 40, 3))}
    readers = {"one": Reader(streams), "other": Reader(streams)}
    for name, what in steps:
        if what.startswith("publish"):
            readers[name].publish(nothing=what.endswith("nothing"))
        else:
            readers[name].go_on(what)
    one, other = readers["one"], readers["other"]
    acknowledged = data.draw(st.integers(0, one.number))
    has = one.revisions.had(GROUP, acknowledged)
    number = other.revisions.number(GROUP, has)
    assert reaches(has, other.behind[number])
    for reader in (one, other):
        for kind in streams:
            for _ in streams[kind]:
                reader.go_on(kind)
        reader.publish(nothing=False)
    has = one.revisions.had(GROUP, one.number)
    assert other.revisions.number(GROUP, has) == other.number
    assert one.revisions.number(GROUP, has) == one.number


def test_a_version_of_one_kind_says_nothing_of_another() -> None:
    mine, theirs = Revisions(), Revisions()
    mine.mark(Received({"Ingress": 10, "Service": 9}, {"Ingress": 10, "Service": 9}), {GROUP: 1})
    theirs.mark(Received({"Ingress": 12, "Service": 5}, {"Ingress": 12, "Service": 5}), {GROUP: 7})
    assert mine.number(GROUP, theirs.had(GROUP, 7)) == 0


def test_a_quiet_stream_holds_nobody_up() -> None:
    mine, theirs = Revisions(), Revisions()
    theirs.mark(Received({"Network": 5, "Ingress": 90}, {"Network": 5, "Ingress": 90}), {GROUP: 3})
    # We have listed Networks later than they: the stream is further, its last object is not.
    mine.mark(Received({"Network": 80, "Ingress": 90}, {"Network": 5, "Ingress": 90}), {GROUP: 1})
    assert mine.number(GROUP, theirs.had(GROUP, 3)) == 1


def test_what_comes_of_nothing_need_not_be_had_by_others() -> None:
    mine = Revisions()
    assert mine.mark(Received({"Ingress": 5}, {"Ingress": 5}), {GROUP: 1})
    assert mine.mark(Received({"Ingress": 6}, {"Ingress": 6}), {GROUP: 1})  # a status of ours
    assert not mine.mark(Received({"Ingress": 6}, {"Ingress": 6}), {GROUP: 1})
    assert mine.number(GROUP, {"Ingress": 5}) == 1
    assert mine.had(GROUP, 1) == {"Ingress": 6}


def test_of_a_long_past_the_end_is_remembered() -> None:
    mine = Revisions()
    for version in range(1, 5000):
        mine.mark(Received({"Ingress": version}, {"Ingress": version}), {GROUP: version})
    assert mine.number(GROUP, {"Ingress": 4990}) == 4990
    assert mine.number(GROUP, {"Ingress": 1}) == 0
    assert mine.had(GROUP, 4999) == {"Ingress": 4999}
    assert mine.published(GROUP) == 4999
