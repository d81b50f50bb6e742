"""What an agent shows of itself to Prometheus, read when it is scraped."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from akocore.engines.agent.agent import Agent

__all__ = ["AgentMetrics", "unready"]

_NAME = "akocore_se"


def unready(agent: Agent) -> list[str]:
    """Why no client should meet this Service Engine; [] when it is ready.

    Without any controller it serves on, so that is no reason; nor is a router that is of no use,
    where there is nobody to tell.
    """
    peers = agent.order.router.peers if agent.order is not None else ()
    counts = ("frr", "router", "daemons") if peers else ()
    reasons = [text for key, text in agent.problems.items() if key in counts]
    if agent.leaving:
        reasons.append("leaving")
    if not agent.alive:
        reasons.append("its Envoy doesn't answer")
    if agent.order is None:
        told = (agent.problems.get(key) for key in ("certificate", "controller"))
        reasons.append(next(filter(None, told), "no controller has told it anything yet"))
    return reasons


class AgentMetrics(Collector):
    """Its Envoy, and each BGP session, BFD session and VIP."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type, for a scraper's Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        report = self._agent.report()

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"{_NAME}_{name}", text, value=value)

        yield gauge("alive", "1 while its Envoy answers.", report.alive)
        yield gauge("controller", "1 while a controller is connected.", bool(self._agent.link.at))
        yield gauge("connections", "Connections of clients.", report.connections)
        yield gauge("cpu", "Processors that its Envoy uses.", report.cpu)
        restarts = CounterMetricFamily(
            f"{_NAME}_restarts", "Starts of its Envoy after it ended by itself."
        )
        restarts.add_metric((), report.restarts)
        yield restarts
        overflows = CounterMetricFamily(
            f"{_NAME}_overflows",
            "Requests and connections that met an open breaker (limits.backendConnections).",
            labels=("service",),
        )
        for service, count in report.overflows.items():
            overflows.add_metric((service,), count)
        yield overflows
        vips = GaugeMetricFamily(
            f"{_NAME}_vip_announced", "1 while it announces a VIP that it holds.", labels=("vip",)
        )
        bgp = GaugeMetricFamily(
            f"{_NAME}_bgp_up", "1 while a BGP session is established.", labels=("peer", "as")
        )
        told = GaugeMetricFamily(
            f"{_NAME}_bgp_prefixes", "Prefixes that a peer has from it.", labels=("peer",)
        )
        drops = CounterMetricFamily(
            f"{_NAME}_bgp_dropped", "How often a session was lost.", labels=("peer",)
        )
        bfd = GaugeMetricFamily(f"{_NAME}_bfd_up", "1 while a BFD session is up.", labels=("peer",))
        if (found := report.observed) is not None:
            for address in found.addresses:
                vips.add_metric((address,), address in report.announced)
            for one in found.bgp:
                bgp.add_metric((one.peer, str(one.remote_as)), one.why is None)
                told.add_metric((one.peer,), one.told)
                drops.add_metric((one.peer,), one.dropped)
            for session in found.bfd:
                bfd.add_metric((session.peer,), session.state == "up")
        yield from (vips, bgp, told, drops, bfd)
        yield gauge("ring_members", "Whom it hands flows over to, with itself.", len(report.ring))
        yield gauge("flows", "Flows of its group's VIPs that it owns.", report.flows)
        packets = CounterMetricFamily(
            f"{_NAME}_handed_over_packets",
            "Packets of others' flows: begun, that a router brought; passed on for others;"
            " unowned, that nobody owns; limited, of flows that were too many to begin.",
            labels=("kind",),
        )
        if report.handed is not None:
            for kind, count in msgspec.structs.asdict(report.handed).items():
                packets.add_metric((kind,), count)
        yield packets
