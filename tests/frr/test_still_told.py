"""What a peer was told is asked for again only when it may be something else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from akocore.engines.frr.observe import BgpSession, Observed

PREFIXES = ("10.10.16.224/32", "10.10.16.225/32")
SESSION = BgpSession(
    peer="10.10.16.250",
    remote_as=6000,
    state="Established",
    up_s=7.0,
    established=1,
    dropped=0,
    updates=3,
    told=2,
    heard=0,
    why=None,
)
BEFORE = Observed(bgp=(SESSION,), bfd=(), advertised={SESSION.peer: PREFIXES}, addresses=())


def test_a_peer_that_was_sent_nothing_since_has_what_it_had() -> None:
    later = msgspec.structs.replace(SESSION, up_s=8.0)
    assert BEFORE.still_told(later) == PREFIXES


@pytest.mark.parametrize(
    "changed",
    [
        {"updates": 4},
        {"told": 3},
        {"established": 2},
        {"dropped": 1},
        {"state": "Idle"},
        {"up_s": 6.0},  # of another bgpd, that counts anew
        {"peer": "10.10.16.251"},
    ],
    ids=str,
)
def test_one_that_may_have_something_else_is_asked(changed: dict[str, Any]) -> None:
    assert BEFORE.still_told(msgspec.structs.replace(SESSION, **changed)) is None
