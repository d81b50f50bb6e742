"""Prints every kernel's ratio to its physical limit below pytest-benchmark's table."""

from collections.abc import Callable
from typing import Any

import pytest

Measure = Callable[..., Any]
LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """``measure(call, items, limit_s)`` runs the benchmark and notes its cost beside the limit.

    ``setup`` makes the arguments of each of ``rounds`` single calls.
    """

    def run(
        call: Callable[..., Any],
        items: int,
        limit_s: float,
        setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
        rounds: int = 5,
    ) -> Any:
        if setup is None:
            result = benchmark(call)
        else:
            result = benchmark.pedantic(call, setup=setup, rounds=rounds, iterations=1)
        if benchmark.stats is not None:  # None under --benchmark-disable
            median_s = benchmark.stats.stats.median
            benchmark.extra_info.update(
                items=items,
                ns_each=round(median_s / items * 1e9, 2),
                limit_ns_each=round(limit_s / items * 1e9, 3),
                times_the_limit=round(median_s / limit_s, 1),
            )
            info = benchmark.extra_info
            request.config.stash.setdefault(LINES, []).append(
                f"{request.node.name:60} {info['ns_each']:12,.2f} ns each, "
                f"limit {info['limit_ns_each']:8,.3f} ns, {info['times_the_limit']:10,.1f} times it"
            )
        return result

    return run


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the summary."""
    return request.config.stash.setdefault(LINES, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if lines := config.stash.get(LINES, []):
        terminalreporter.section("beside the physical limit (median)")
        for line in lines:
            terminalreporter.write_line(line)
