"""How a batch is followed to its acknowledgement."""

from __future__ import annotations

import pytest

from akocore.kube.objects import Batch, Change
from akocore.observe.watch import Publication, Seen, Watch

BATCH = Batch((Change("Ingress", "a/b", None),), {}, at=90.0)


class Clock:
    """The seconds as the test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """All that a listener is told."""

    def __init__(self) -> None:
        self.batches: list[Seen] = []
        self.settled: list[Publication] = []
        self.ended: list[Seen] = []

    def applied(self, seen: Seen) -> None:
        self.batches.append(seen)

    def acknowledged(self, publication: Publication) -> None:
        self.settled.append(publication)

    def over(self, seen: Seen) -> None:
        self.ended.append(seen)


class Spent:
    """Totals of the work."""

    encode_s = 1.0
    realised = 5


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def watch(heard: Heard, clock: Clock) -> Watch:
    return Watch([heard], clock)


def test_a_batch_has_its_times_and_what_it_cost(watch: Watch, heard: Heard, clock: Clock) -> None:
    spent = Spent()
    with watch.batch(BATCH, spent):
        spent.encode_s, spent.realised = 1.25, 8
        clock.now = 102.0
        watch.published("g", 1, 101.5, True)
        clock.now = 103.0
    (seen,) = heard.batches
    assert (seen.objects, seen.at, seen.began, seen.ended) == (1, 90.0, 100.0, 103.0)
    assert (seen.encode_s, seen.hosts, seen.publish_s) == (0.25, 3, 0.5)


def test_a_batch_is_over_when_its_last_group_has_acknowledged(watch: Watch, heard: Heard) -> None:
    with watch.batch(BATCH, Spent()):
        watch.published("one", 7, 100.0, True)
        watch.published("two", 3, 100.0, True)
    watch.acknowledged("one", 7)
    assert heard.ended == []
    watch.acknowledged("two", 2)
    assert heard.ended == []
    watch.acknowledged("two", 3)
    assert heard.ended == heard.batches
    assert [(p.group, p.sequence) for p in heard.settled] == [("one", 7), ("two", 3)]


def test_a_batch_that_changes_nothing_is_over_at_once(watch: Watch, heard: Heard) -> None:
    with watch.batch(BATCH, Spent()):
        pass
    assert heard.ended == heard.batches
    assert len(heard.batches) == 1


def test_an_empty_batch_is_none(watch: Watch, heard: Heard) -> None:
    with watch.batch(Batch((), {}, 0.0), Spent()):
        pass
    assert heard.batches == []


def test_what_is_published_twice_in_a_batch_counts_once_from_its_event(
    watch: Watch, heard: Heard
) -> None:
    with watch.batch(BATCH, Spent()):
        watch.published("g", 1, 100.0, True)
        watch.published("g", 2, 100.0, True)
    watch.acknowledged("g", 2)
    assert [p.of_batch for p in heard.settled] == [0.0, 90.0]


def test_what_no_batch_published_has_no_event(watch: Watch, heard: Heard) -> None:
    watch.published("g", 1, 100.0, True)
    watch.acknowledged("g", 1)
    assert [p.of_batch for p in heard.settled] == [0.0]
    assert heard.ended == []


def test_what_waits_for_another_engine_was_not_pushed(watch: Watch, heard: Heard) -> None:
    watch.published("g", 1, 100.0, True)
    watch.acknowledged("g", None)
    watch.published("g", 2, 100.0, False)
    watch.acknowledged("g", 1)
    watch.published("g", 3, 100.0, True)
    watch.acknowledged("g", 3)
    assert [(p.sequence, p.pushed) for p in heard.settled] == [(1, False), (2, False), (3, True)]


def test_a_group_that_nobody_wants_is_given_up(watch: Watch, heard: Heard) -> None:
    watch.wanted = lambda group: group != "left"
    with watch.batch(BATCH, Spent()):
        watch.published("left", 1, 100.0, True)
    assert watch.unacknowledged("left")[0] == 1
    watch.acknowledged("left", None)
    assert watch.unacknowledged("left") == (0, 0.0)
    assert (heard.ended, heard.settled) == (heard.batches, [])
    with watch.batch(BATCH, Spent()):
        watch.published("left", 2, 100.0, False)
    assert watch.unacknowledged("left") == (0, 0.0)
    assert heard.ended == heard.batches


def test_the_oldest_that_waits_is_known_and_engines_that_hang_fill_no_memory(
    watch: Watch, heard: Heard, clock: Clock
) -> None:
    for number in range(1, 10_001):
        with watch.batch(BATCH, Spent()):
            watch.published("g", number, clock.now, True)
        clock.now += 1
    count, seconds = watch.unacknowledged("g")
    assert (count, seconds) == (4096, 10_000.0)
    assert len(heard.ended) == 10_000 - 4096
    watch.acknowledged("g", 10_000)
    assert watch.unacknowledged("g") == (0, 0.0)
    assert len(heard.ended) == 10_000


def test_at_the_end_every_batch_is_over(watch: Watch, heard: Heard) -> None:
    with watch.batch(BATCH, Spent()):
        watch.published("g", 1, 100.0, True)
    watch.close()
    assert (heard.ended, heard.settled) == (heard.batches, [])


def test_without_a_listener_nothing_is_kept(clock: Clock) -> None:
    watch = Watch((), clock)
    with watch.batch(BATCH, Spent()):
        watch.published("g", 1, 100.0, True)
    assert watch.unacknowledged("g") == (0, 0.0)
