"""``make fuzz``: made-up objects for a time, and the four figures that must be nothing.

    SEED=7 SECONDS=1800 make fuzz

A third of the time goes to translation alone, which takes many more objects, the rest to real
Envoys; half of each to either release of the Gateway API.  Exit code 1: something came up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from itertools import islice
from pathlib import Path

from msgspec import Struct, field

from akocore.config import Config
from fuzz.engines import house
from fuzz.judge import Judge
from fuzz.schemas import RELEASES
from fuzz.translation import Translation

__all__ = ["Figures", "run"]

_BATCH = 20


class Figures(Struct):
    """What a run came to."""

    translated: int = 0
    sent: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # of the API server, by kind
    good: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    exceptions: Counter[str] = field(default_factory=Counter)
    nacks: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    silent: list[str] = field(default_factory=list)  # canaries that did not answer
    answers: Counter[int] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not (self.exceptions or self.nacks or self.deaths or self.silent)


def run(scratch: Path, seed: int, seconds: float, said: bool = False) -> Figures:
    """Make objects up for so many seconds."""
    out = Figures()
    for number, release in enumerate(RELEASES):
        with Judge(scratch / f"server-{number}", seed * 2 + number, release) as judge:
            _translate(out, judge, scratch / f"translation-{number}", seconds / 6)
            if said:
                _say(out, release)
            asyncio.run(_send(out, judge, seconds / 3))
            out.asked.update(judge.asked)
            out.good.update(judge.good)
        if said:
            _say(out, release)
    return out


def _translate(out: Figures, judge: Judge, scratch: Path, seconds: float) -> None:
    scratch.mkdir()
    world = Translation(scratch)
    until = time.monotonic() + seconds
    objects = judge.objects()
    while time.monotonic() < until:
        world.take(list(islice(objects, _BATCH)))
        out.translated += _BATCH
    out.exceptions.update(world.faults)
    out.unread.update(world.unread)


async def _send(out: Figures, judge: Judge, seconds: float) -> None:
    until = time.monotonic() + seconds
    objects = judge.objects()
    async with house(Config()) as made:
        while time.monotonic() < until:
            batch = await asyncio.to_thread(lambda: list(islice(objects, _BATCH)))
            await made.take(batch)
            out.sent += len(batch)
        out.nacks.update(made.nacks)
        out.exceptions.update(made.faults)
        out.answers.update(made.answers)
        out.deaths += made.deaths
        out.silent += made.silent


def _say(out: Figures, release: str) -> None:
    four = f"{len(out.exceptions)} exceptions, {len(out.nacks)} NACKs, {out.deaths} engine deaths"
    print(
        f"Gateway API {release}: {out.translated} translated, {out.sent} through Envoys: {four},"
        f" {len(out.silent)} times no canary",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        out = run(Path(scratch), options.seed, options.seconds, said=True)
    for name in ("exceptions", "nacks", "unread", "good", "asked", "answers"):
        print(f"{name}: {json.dumps(dict(getattr(out, name).most_common(40)), indent=1)}")
    print(f"silent: {out.silent[:20]}")
    return 0 if out.clean else 1


if __name__ == "__main__":
    sys.exit(main())
