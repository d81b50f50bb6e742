"""Rules of Gateway API routes, through a real Envoy to real backends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from engines.gateway_rig import Rig, rig, to

pytestmark = pytest.mark.real


@pytest_asyncio.fixture
async def gw() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one


async def test_a_host_is_found_by_its_name_however_it_is_spelt(gw: Rig) -> None:
    web = await gw.echo("web")
    await gw.listen()
    await gw.serve(to(web))
    for host in ("a.example.test", "A.Example.TEST", "a.example.test:80", "a.example.test."):
        answer = await gw.ask("/x?y=1", host=host)
        assert (answer.by, answer.seen["path"]) == ("web", "/x?y=1"), host
        assert answer.seen["host"] == host.rstrip(".")
    assert (await gw.ask(host="b.example.test")).status == 404


async def test_the_longest_wildcard_that_matches_serves(gw: Rig) -> None:
    names = {"*.example.test": "one", "*.b.example.test": "two", "x.example.test": "three"}
    await gw.listen(hosts=names)
    for host, name in names.items():
        await gw.serve(to(await gw.echo(name)), host=host)
    for host, by in {
        "a.example.test": "one",
        "a.c.d.example.test": "one",
        "b.example.test": "one",
        "a.b.example.test": "two",
        "A.x.B.example.test:80": "two",
        "x.example.test": "three",
        "y.x.example.test": "one",
        "example.test": "404",
        "other.test": "404",
        "test": "404",
    }.items():
        answer = await gw.ask(host=host)
        assert answer.by == by, host
        if answer.status == 200:
            assert answer.seen["host"] == host
    await gw.listen(hosts=[*names, ""])
    await gw.serve(to(await gw.echo("any")), host="")
    assert (await gw.ask(host="other.test")).by == "any"
    assert (await gw.ask(host="a.b.example.test")).by == "two"
