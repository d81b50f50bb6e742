"""Weights by load: slow, with room between up and down."""

from __future__ import annotations

from akocore.place.balance import Balance


def after(balance: Balance, seconds: int, **loads: float) -> dict[str, float]:
    """The last weights that changed while these loads lasted."""
    changed: dict[str, float] = {}
    start = getattr(after, "clock", 1000)
    for second in range(start, start + seconds):
        changed |= balance.heard(loads, float(second))
    after.clock = start + seconds  # type: ignore[attr-defined]
    return changed


def test_a_busy_engine_gets_less_after_a_while_and_all_of_it_back_when_it_is_idle() -> None:
    balance = Balance(hold_s=30)
    assert after(balance, 30, a=0.95, b=0.3) == {}
    assert after(balance, 5, a=0.95, b=0.3) == {"a": 0.75}
    assert after(balance, 200, a=0.6, b=0.5) == {}  # neither busy nor idle
    assert balance.weight("a") == 0.75
    assert after(balance, 40, a=0.2, b=0.5) == {"a": 1.0}
    assert after(balance, 100, a=0.2, b=0.2) == {}


def test_a_short_peak_changes_nothing() -> None:
    balance = Balance(hold_s=30)
    for _ in range(10):
        assert after(balance, 20, a=1.0, b=0.1) == {}
        assert after(balance, 5, a=0.5, b=0.1) == {}


def test_where_all_are_busy_nobody_gets_less() -> None:
    balance = Balance(hold_s=30)
    assert after(balance, 200, a=0.95, b=0.9, c=0.92) == {}


def test_no_engine_is_left_without_anything() -> None:
    balance = Balance(hold_s=10)
    after(balance, 500, a=1.0, b=0.1)
    assert balance.weight("a") == 0.25
    balance.forget("a")
    assert balance.weight("a") == 1.0
