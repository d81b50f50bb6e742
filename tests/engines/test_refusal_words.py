"""What is said of a refusal by Envoy: one clause, the same of every engine and at any time."""

from __future__ import annotations

import logging

import pytest

from akocore.engines.envoy.resources import Encoded, cluster
from engines.gateway_rig import ADDRESS, GROUP, VS, need_envoy, rig, until
from engines.refusals import (
    BAD_ENDPOINTS,
    BAD_LISTENERS,
    BAD_RULES,
    host_of,
    rule_of,
)

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


def refused() -> list[Encoded]:
    """One resource for each way of being refused."""
    hosts = [
        host_of(VS, 80, f"h{n}.test", change(rule_of("v1")))
        for n, change in enumerate(BAD_RULES.values())
    ]
    clusters = [
        cluster(f"default/c{n}/80", [endpoint]) for n, endpoint in enumerate(BAD_ENDPOINTS.values())
    ]
    listeners = [
        make(f"vs-{n}", ADDRESS, 9000 + n) for n, make in enumerate(BAD_LISTENERS.values())
    ]
    return [*hosts, *clusters, *listeners]


async def words() -> dict[tuple[str, str], str]:
    """What an Envoy that starts anew says, by type and name."""
    async with rig() as one:
        await one.listen()
        sequence = one.ads.publish(GROUP, refused(), [])
        engine = one.ads.engines["se-1"]
        await until(lambda: engine.acknowledged >= sequence, 30)
        return {key: found.message for key, found in engine.rejected.items()}


async def test_a_refusal_is_told_in_one_clause(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    found = await words()
    assert found.keys() == {(one.type_url, one.name) for one in refused()}
    for text in found.values():
        assert text == " ".join(text.split())
        assert 0 < len(text) <= 200
        assert not any(
            dump in text for dump in ("goo.gle", "debug", "xdstp:", "typed_config", "\n")
        )
    assert await words() == found
    for record in caplog.records:
        assert "goo.gle" not in record.getMessage()
        assert len(record.getMessage()) < 500
