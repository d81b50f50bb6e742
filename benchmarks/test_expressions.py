"""The longest request to a host that has all the regular expressions that it may have.

Beside the same request to a host that has none: what a tenant can make others wait at most, each
time, on the engines that he shares with them.  RE2's limit is some 5 ns a byte and expression.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from akocore.config import Limits
from akocore.engines.envoy.bootstrap import LARGEST_EXPRESSION
from akocore.engines.envoy.http_rule import expressions
from akocore.model_http import HttpMatch, HttpRule, TextMatch
from akocore.translate.gateway_api.budget import problem, weigh
from engines.gateway_rig import Rig, need_envoy, rig, to

LONGEST = 45_000  # bytes of a path: some less than a request may have
ROUNDS = 100

# By name: an expression of which each rule has one of its own, and the text that costs it most.
WORST = {
    "read to the end": ("/(?:[^/]*/)*x{}", "/some" * (LONGEST // 5)),
    "new states": ("/[ab]*a[ab]{{7}}x{}", "/" + "abbabaabab" * (LONGEST // 10)),
}


def full(text: str) -> Iterator[HttpRule]:
    """As many rules with such an expression as a host may have."""
    limits = Limits()
    tried: list[tuple[str, bool]] = []
    for i in range(1000):
        one = text.format(i)
        assert not problem(one, limits)[1]
        rule = HttpRule(f"r{i}", HttpMatch(TextMatch("regex", one)), answer=204)
        tried += expressions(rule)
        if not weigh(tried, limits, LARGEST_EXPRESSION)[0].fits(limits):
            return
        yield rule


async def _median_s(gw: Rig, host: str, path: str) -> tuple[float, float]:
    """(median, worst) of `ROUNDS` requests."""
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        assert (await gw.ask(path, host=host)).status == 200
        took.append(time.perf_counter() - began)
    return statistics.median(took), max(took)


@pytest.mark.parametrize("name", WORST)
def test_the_longest_request_of_a_full_host(name: str, note: Callable[[str], None]) -> None:
    need_envoy()
    text, path = WORST[name]

    async def run() -> None:
        rules = list(full(text))
        async with rig() as gw:
            await gw.listen()
            await gw.serve(to(answer=200), host="plain.test")
            await gw.serve(*rules, to(answer=200), host="full.test")
            await gw.ask("/", host="full.test")
            plain, worst = await _median_s(gw, "plain.test", path)
            mine, mine_worst = await _median_s(gw, "full.test", path)
        note(
            f"expressions, {name}: {len(rules)} rules, path of {len(path)} bytes:"
            f" {mine * 1e3:.2f} ms (worst {mine_worst * 1e3:.2f}), {mine / plain:.1f} times a host"
            f" without ({plain * 1e3:.2f}, worst {worst * 1e3:.2f})"
        )

    asyncio.run(run())
