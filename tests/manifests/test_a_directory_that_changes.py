"""Live: real files, the kernel's own events."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from akocore.kube.objects import Service
from akocore.manifests import Batch, ManifestDirectory
from akocore.place.state import State

from .conftest import Bench, said, service


def ports(batch: Batch) -> list[int]:
    return [c.obj.spec.ports[0].port for c in batch.changes if isinstance(c.obj, Service)]


async def test_a_written_file_is_a_change_and_the_same_content_is_none(bench: Bench) -> None:
    async with bench.watching():
        before = time.monotonic()
        bench.write("a.yaml", service("a"))
        batch = await bench.next()
        assert said(batch) == ["+Service/shop/a"]
        assert before <= batch.at <= time.monotonic()
        bench.write("a.yaml", "# only a comment\n" + service("a"))
        os.utime(bench.root / "a.yaml")
        await bench.quiet()
        bench.write("a.yaml", service("a", 81))
        assert ports(await bench.next()) == [81]
        (bench.root / "a.yaml").unlink()
        assert said(await bench.next()) == ["-Service/shop/a"]


async def test_a_file_counts_when_its_writer_closes_it(bench: Bench) -> None:
    bench.write("a.yaml", service("a") + "---\n" + service("b"))
    async with bench.watching():
        with (bench.root / "a.yaml").open("w") as file:
            file.write(service("a"))
            file.flush()
            await bench.quiet()
            file.write("---\n" + service("b", 81))
        assert said(await bench.next()) == ["+Service/shop/b"]


async def test_what_happened_between_load_and_watch_is_seen(bench: Bench) -> None:
    bench.write("a.yaml", service("a"))
    bench.load()
    bench.write("a.yaml", service("a", 81))
    bench.write("b.yaml", service("b"))
    stop = asyncio.Event()
    async for batch in bench.directory.watch(stop):
        assert said(batch) == ["+Service/shop/a", "+Service/shop/b"]
        stop.set()


async def test_a_syntax_error_keeps_all_of_the_file_and_a_bad_object_only_itself(
    bench: Bench,
) -> None:
    good = service("a") + "---\n" + service("b")
    bench.write("f.yaml", good)
    async with bench.watching():
        bench.write("f.yaml", service("a", "x") + "---\n" + service("b", 81))
        batch = await bench.next()
        assert said(batch) == ["+Service/shop/b"]
        (no,) = batch.refusals["f.yaml"]
        assert (no.object, no.field, no.line) == ("Service/shop/a", "spec.ports[0].port", 8)

        bench.write("f.yaml", "a: [")
        batch = await bench.next()
        assert said(batch) == []
        assert [r.reason for r in batch.refusals["f.yaml"]] == ["InvalidYAML"]

        bench.write("f.yaml", service("a") + "---\n" + service("b", 81))
        batch = await bench.next()
        assert (said(batch), batch.refusals) == ([], {"f.yaml": ()})
        assert bench.memory.room("last-good") == {}


async def test_an_object_that_lost_its_name_does_not_take_its_last_good_version_away(
    bench: Bench,
) -> None:
    bench.write("f.yaml", service("a") + "---\n" + service("b"))
    async with bench.watching():
        bench.write("f.yaml", service("A!") + "---\n" + service("b", 81))
        batch = await bench.next()
        assert said(batch) == ["+Service/shop/b"]
        assert [r.reason for r in batch.refusals["f.yaml"]] == ["InvalidName"]


@pytest.mark.parametrize("bad", ["a: [", service("a", "x")], ids=["syntax", "field"])
async def test_the_last_good_version_survives_a_restart(bench: Bench, bad: str) -> None:
    bench.write("f.yaml", service("a", 77))
    async with bench.watching():
        bench.write("f.yaml", bad)
        await bench.next()
    bench.time = "2027-01-01T00:00:00Z"
    batch = bench.load()
    assert ports(batch) == [77]
    assert batch.changes[0].obj is not None
    assert batch.changes[0].obj.metadata.creation_timestamp == "2026-01-01T00:00:00Z"
    assert "f.yaml" in batch.refusals
    (bench.root / "f.yaml").unlink()
    assert bench.load().changes == ()
    assert bench.memory.room("last-good") == {}


async def test_the_one_seen_first_stays_and_the_other_takes_over_at_once(bench: Bench) -> None:
    bench.write("z.yaml", service("a", 1))
    async with bench.watching():
        bench.write("a.yaml", service("a", 2))
        batch = await bench.next()
        assert said(batch) == []
        assert "z.yaml" in batch.refusals["a.yaml"][0].remedy
        (bench.root / "z.yaml").unlink()
        batch = await bench.next()
        assert ports(batch) == [2]
        assert batch.refusals == {"a.yaml": ()}


async def test_a_moved_file_or_directory_is_no_change(bench: Bench) -> None:
    bench.write("a.yaml", service("a"))
    bench.write("d/e/b.yaml", service("b"))
    async with bench.watching():
        (bench.root / "a.yaml").rename(bench.root / "renamed.yaml")
        (bench.root / "d").rename(bench.root / "moved")
        await bench.quiet()
        bench.write("moved/e/b.yaml", service("b", 81))
        assert ports(await bench.next()) == [81]


async def test_a_directory_brings_and_takes_what_is_in_it(bench: Bench) -> None:
    outside = bench.root.parent / "outside"
    outside.mkdir()
    (outside / "sub").mkdir()
    (outside / "sub/a.yaml").write_text(service("a"))
    async with bench.watching():
        outside.rename(bench.root / "in")
        assert said(await bench.next()) == ["+Service/shop/a"]
        bench.write("in/sub/new/b.yaml", service("b"))
        assert said(await bench.next()) == ["+Service/shop/b"]
        (bench.root / "in").rename(outside)
        assert said(await bench.next()) == ["-Service/shop/a", "-Service/shop/b"]


def _plain(bench: Bench, text: str) -> None:
    bench.write("a.yaml", text)


def _rename(bench: Bench, text: str) -> None:
    bench.write(".a.yaml.tmp", text)
    (bench.root / ".a.yaml.tmp").rename(bench.root / "a.yaml")


def _backup(bench: Bench, text: str) -> None:
    bench.write("4913", "")
    (bench.root / "4913").unlink()
    (bench.root / "a.yaml").rename(bench.root / "a.yaml~")
    bench.write("a.yaml", text)
    (bench.root / "a.yaml~").unlink()


def _link(bench: Bench, text: str) -> None:
    bench.write(".store", text)
    (bench.root / "a.yaml").unlink()
    os.link(bench.root / ".store", bench.root / "a.yaml")


@pytest.mark.parametrize("save", [_plain, _rename, _backup, _link])
async def test_however_an_editor_saves_it_is_one_change(
    bench: Bench, save: Callable[[Bench, str], None]
) -> None:
    bench.write("a.yaml", service("a"))
    async with bench.watching():
        save(bench, service("a", 81))
        assert ports(await bench.next()) == [81]
        await bench.quiet()


@pytest.mark.parametrize("path", ["a.yaml", "sub/a.yaml"], ids=["file", "directory"])
async def test_a_mounted_config_map_is_swapped_as_one(bench: Bench, path: str) -> None:
    """As kubelet's AtomicWriter: data in ``..time``, ``..data`` a link to it, visible links."""

    def publish(time: str, port: int) -> None:
        bench.write(f"..{time}/{path}", service("a", port))
        (bench.root / "..data_tmp").symlink_to(f"..{time}")
        (bench.root / "..data_tmp").rename(bench.root / "..data")

    publish("2026_1", 80)
    top = path.split("/")[0]
    (bench.root / top).symlink_to(f"..data/{top}")
    async with bench.watching():
        for i in (2, 3):
            publish(f"2026_{i}", 80 + i)
            assert ports(await bench.next()) == [80 + i]


async def test_a_root_that_is_a_link_may_be_swapped(bench: Bench) -> None:
    for name, port in (("one", 1), ("two", 2)):
        bench.write(f"{name}/a.yaml", service("a", port))
    link = bench.root / "current"
    link.symlink_to("one")
    bench.root = link
    async with bench.watching():
        link.with_name("tmp").symlink_to("two")
        link.with_name("tmp").rename(link)
        assert ports(await bench.next()) == [2]


async def test_a_root_that_goes_away_leaves_everything_until_it_is_back(bench: Bench) -> None:
    bench.write("a.yaml", service("a"))
    away = bench.root.with_name("away")
    async with bench.watching():
        bench.root.rename(away)
        batch = await bench.next()
        assert said(batch) == []
        assert [r.reason for r in batch.refusals["."]] == ["Unreadable"]
        (away / "a.yaml").write_text(service("a", 81))
        away.rename(bench.root)
        batches = await bench.until(lambda b: sum(len(x.changes) for x in b) == 1)
        assert batches[0].refusals == {".": ()}
        assert ports(batches[-1]) == [81]


async def test_a_queue_that_ran_over_is_made_up_for_by_looking_at_everything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from akocore.file_events import FileEvents

    real, lost = FileEvents.read, [True]

    def read(self: FileEvents) -> tuple[set[str], set[str]] | None:
        got = real(self)
        return None if lost and lost.pop() else got  # as the kernel says it: what, is unknown

    monkeypatch.setattr(FileEvents, "read", read)
    async with bench.watching():
        bench.write("a.yaml", service("a"))
        assert said(await bench.next()) == ["+Service/shop/a"]
        bench.write("b.yaml", service("b"))
        assert said(await bench.next()) == ["+Service/shop/b"]


async def test_a_burst_of_files_comes_in_a_few_batches_and_nothing_is_lost(bench: Bench) -> None:
    (bench.root / "d").mkdir()

    async with bench.watching():
        for i in range(2000):  # faster than anybody can look, since that is who writes
            bench.write(f"d/{i}/{i}.yaml" if i % 10 == 0 else f"d/{i}.yaml", service(f"s{i}"))
        batches = await bench.until(lambda b: sum(len(x.changes) for x in b) >= 2000)
        keys = [c.key for b in batches for c in b.changes]
        assert len(set(keys)) == len(keys) == 2000
        assert len(batches) < 40


async def test_work_for_one_file_does_not_look_at_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(50):
        bench.write(f"d/{i}.yaml", service(f"s{i}"))
    async with bench.watching():
        looked: list[str] = []
        look = bench.directory._look

        def spy(paths: set[str]) -> list[object]:
            looked.extend(paths)
            return look(paths)  # type: ignore[return-value]

        monkeypatch.setattr(bench.directory, "_look", spy)
        bench.write("d/7.yaml", service("s7", 81))
        assert ports(await bench.next()) == [81]
        assert set(looked) == {"d/7.yaml"}


def test_no_secret_is_written_to_the_memory_and_a_good_one_outlives_a_restart(
    tmp_path: Path,
) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    private = "LS0tLS1QUklWQVRF"
    secret = f"""apiVersion: v1
kind: Secret
metadata: {{name: tls, namespace: shop}}
data: {{tls.crt: YQ==, tls.key: {private}}}
"""
    broken = service("b", "http")
    (root / "a.yaml").write_text(secret + "---\n" + service("a") + "---\n" + broken)
    state = State(tmp_path / "state")

    def start() -> ManifestDirectory:
        return ManifestDirectory(root, state, lambda: "2026-01-01T00:00:00Z")

    directory = start()
    assert said(directory.load()) == ["+Secret/shop/tls", "+Service/shop/a"]
    state.commit(state.take())
    (root / "a.yaml").write_text("a: [")
    assert said(directory._apply(directory._look_at_all(), 0.0)) == []  # both are served on
    state.commit(state.take())
    for file in (tmp_path / "state").iterdir():
        assert private.encode() not in file.read_bytes(), file.name
    assert said(start().load()) == ["+Service/shop/a"]  # the file can't be read, so its Secret
    (root / "a.yaml").write_text(secret + "---\n" + broken)
    assert said(start().load()) == ["+Secret/shop/tls"]
    state.close()
