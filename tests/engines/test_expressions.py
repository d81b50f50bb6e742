"""Regular expressions in a real Envoy: what it takes, and a host that has all that it may."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import re2

from akocore.config import Limits
from akocore.engines.envoy.bootstrap import LARGEST_EXPRESSION
from akocore.engines.envoy.gateway import http_scope
from akocore.engines.envoy.http_rule import expressions
from akocore.engines.envoy.resources import SRDS
from akocore.model_http import Backend, Cors, ExternalAuth, HttpHost, HttpMatch, HttpRule, TextMatch
from akocore.translate.gateway_api.budget import weigh
from engines.gateway_rig import GROUP, VS, Rig, need_envoy, rig, to, until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


@pytest_asyncio.fixture
async def gw() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one


def of_size(size: int) -> str:
    """An expression of so many instructions that matches one text."""
    out = "/" + "a{1000}" * (size // 1000 - 1)
    return f"{out}b{{{size - int(re2.compile(out).programsize)}}}"


async def test_the_engine_counts_instructions_as_we_do(gw: Rig) -> None:
    def scope(size: int) -> HttpHost:
        text = of_size(size)
        assert re2.compile(text).programsize == size
        match = HttpMatch(TextMatch("regex", text))
        return HttpHost(f"s{size}.test", (HttpRule("r", match, answer=204),))

    await gw.listen()
    await gw.publish([http_scope(VS, 80, "http", scope(LARGEST_EXPRESSION))])
    sequence = gw.ads.publish(
        GROUP, [http_scope(VS, 80, "http", scope(LARGEST_EXPRESSION + 1))], ()
    )
    engine = gw.ads.engines["se-1"]
    await until(lambda: engine.acknowledged >= sequence and bool(engine.rejected))
    refused = [name for type_url, name in engine.rejected if type_url == SRDS]
    assert [name.rpartition("/")[2] for name in refused] == [f"s{LARGEST_EXPRESSION + 1}.test"]


async def test_a_host_with_all_that_it_may_have_answers_the_longest_requests(gw: Rig) -> None:
    limits = Limits()
    rules = []
    while weigh((t for r in rules for t in expressions(r)), limits, 5000)[0].fits(limits):
        match = HttpMatch(TextMatch("regex", f"/(?:[^/]*/)*x{len(rules)}"))
        rules.append(HttpRule("r", match, answer=204))
    rules.pop()
    assert 10 < len(rules) <= limits.host_expression_size / 64
    await gw.listen()
    await gw.serve(*rules, to(name="rest", answer=200))
    long = "/" + "some/thing/" * 1000
    assert (await gw.ask(long)).status == 200
    assert (await gw.ask(f"{long}x{len(rules) - 1}")).status == 204


def test_a_rule_is_weighed_as_often_as_it_is_tried() -> None:
    path = HttpMatch(TextMatch("regex", "/a/.*"))
    cors = Cors(origins=("https://*.shop.test",), methods=("GET",))
    assert [text for text, _ in expressions(HttpRule("r", path))] == ["/a/.*"]
    found = [text for text, _ in expressions(HttpRule("r", path, cors=cors))]
    assert found.count("/a/.*") == 4  # two preflights, from an allowed origin, from any other
    assert len(found) == 6
    assert not list(expressions(HttpRule("r", HttpMatch(TextMatch("prefix", "/a")))))


def test_an_authorizer_s_list_of_headers_counts_as_a_list_alone() -> None:
    def rule(names: int) -> HttpRule:
        asked = tuple(f"{chr(97 + i % 26)}{i}-x-tenant-of-the-shop" for i in range(names))
        auth = ExternalAuth(Backend("default/auth/80"), grpc=False, request_headers=asked)
        return HttpRule("r", HttpMatch(TextMatch("prefix", "/a")), auth=auth)

    limits = Limits()
    weight, wrong = weigh(expressions(rule(10)), limits, LARGEST_EXPRESSION)
    assert (weight.size, wrong) == (0, "")
    assert (
        f"at most {LARGEST_EXPRESSION}"
        in weigh(expressions(rule(64)), limits, LARGEST_EXPRESSION)[1]
    )
