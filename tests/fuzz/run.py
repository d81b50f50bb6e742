"""A run: two processes make objects up side by side, for a time, with either release."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

from msgspec import Struct, field

from akocore.config import Config
from fuzz.engines import House, house
from fuzz.judge import Judge, Made, server
from fuzz.schemas import RELEASES
from fuzz.translation import Translation

__all__ = ["Figures", "run"]

_BATCH = 40
_STEP_S = 3.0  # that many to Envoys in it at most: the API server's time is translation's, too


class Figures(Struct):
    """What a run, or a part of one, came to."""

    translated: int = 0
    sent: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # of the API server, by kind
    good: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    exceptions: Counter[str] = field(default_factory=Counter)
    nacks: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    silent: list[str] = field(default_factory=list)  # canaries and good objects without an answer
    answers: Counter[int] = field(default_factory=Counter)
    visited: Counter[str] = field(default_factory=Counter)  # made-up rules that had to answer

    @property
    def clean(self) -> bool:
        return not (self.exceptions or self.nacks or self.deaths or self.silent)

    def add(self, other: Figures) -> None:
        for name in self.__struct_fields__:
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(getattr(other, name))
            else:
                setattr(self, name, mine + getattr(other, name))


def run(scratch: Path, seed: int, seconds: float, said: bool = False) -> Figures:
    """Make objects up for so many seconds."""
    out = Figures()
    begin = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    for number, release in enumerate(RELEASES):
        until = begin + seconds * (number + 1) / len(RELEASES)
        with (
            server(scratch / f"server-{number}", release) as port,
            ProcessPoolExecutor(1, spawn) as pool,
        ):
            left = max(until - time.monotonic(), 1)
            aside = scratch / f"translation-{number}"
            what = (port, seed * 4 + number, release, left)
            other = pool.submit(_translate, aside, *what, said)
            out.add(asyncio.run(_send(port, seed * 4 + 2 + number, release, left, said)))
            out.add(other.result())
        if said:
            _say(out, release)
    return out


def _translate(
    scratch: Path, port: int, seed: int, release: str, seconds: float, said: bool
) -> Figures:
    logging.basicConfig(level=logging.ERROR)
    scratch.mkdir()
    out = Figures()
    begin = time.monotonic()
    judge = Judge(port, seed, release)
    world = Translation(scratch)
    known = 0
    with closing(judge.objects()) as objects:
        while time.monotonic() - begin < seconds:
            world.take(list(islice(objects, _BATCH)))
            out.translated += _BATCH
            for one in list(world.faults)[known:] if said else ():
                _tell(begin, out.translated, "exception", one)
            known = len(world.faults)
    out.exceptions.update(world.faults)
    out.unread.update(world.unread)
    out.asked.update(judge.asked)
    out.good.update(judge.good)
    return out


async def _send(port: int, seed: int, release: str, seconds: float, said: bool) -> Figures:
    out = Figures()
    begin = time.monotonic()
    judge = Judge(port, seed, release)
    with closing(judge.objects()) as objects:
        while time.monotonic() - begin < seconds:  # anew each time that akocore ended
            async with house(Config()) as made:
                known: set[str] = set()
                while time.monotonic() - begin < seconds and not made.ended:
                    await _step(out, made, objects)
                    for one in made.findings() if said else ():
                        if one not in known:
                            known.add(one)
                            _tell(begin, out.sent, "engines", one)
                out.nacks.update(made.nacks)
                out.exceptions.update(made.faults)
                out.answers.update(made.answers)
                out.visited.update(made.visited)
                out.deaths += made.deaths
                out.silent += made.silent
    out.asked.update(judge.asked)
    out.good.update(judge.good)
    return out


async def _step(out: Figures, made: House, objects: Iterator[Made]) -> None:
    begin = time.monotonic()
    batch = await asyncio.to_thread(lambda: list(islice(objects, _BATCH)))
    await made.take(batch)
    out.sent += len(batch)
    await asyncio.sleep(max(0.0, begin + _STEP_S - time.monotonic()))


def _tell(begin: float, count: int, what: str, found: str) -> None:
    print(f"after {time.monotonic() - begin:.0f} s and {count}: {what}: {found}", flush=True)


def _say(out: Figures, release: str) -> None:
    four = f"{len(out.exceptions)} exceptions, {len(out.nacks)} NACKs, {out.deaths} engine deaths"
    print(
        f"to Gateway API {release}: {out.translated} translated, {out.sent} through Envoys: {four},"
        f" {len(out.silent)} times no answer (of {sum(out.visited.values())} rules, and canaries)",
        flush=True,
    )
