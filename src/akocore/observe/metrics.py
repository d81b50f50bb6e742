"""Prometheus metrics, in a registry of our own.

Latencies are observed once a batch and once an acknowledgement.  Everything else is a fact that
akocore has anyway and is read when it is scraped.  No label's values grow with Ingresses: they
are kinds, reasons, groups, engines, Networks and shared virtual services.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from akocore import __version__
from akocore.kube.cluster import Cluster
from akocore.kube.gateway_objects import GATEWAY_KINDS
from akocore.observe.watch import Publication, Seen, Watch
from akocore.place.virtual_services import DEDICATED_SHARD

if TYPE_CHECKING:
    from akocore.serve import Serve

__all__ = ["Metrics"]

_SIZES = (1, 2, 5, 10, 25, 100, 250, 1_000, 2_500, 10_000, 25_000, 100_000)
_WORK_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STORED = (
    *("Ingress", "IngressClass", "Service", "EndpointSlice", "Secret", "Namespace"),
    *("AviInfraSetting", "Network", "ServiceEngineGroup", "GatewayClass", "Gateway"),
    *(kind.stored() for kind in GATEWAY_KINDS),
)
_STATES = ("wanted", "running", "connected", "ready")


class _Histogram:
    """Observations by the first bound that they don't exceed.  `observe` is one bisection."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family.add_metric(labels, buckets, self._sum)


class Metrics(Collector):
    """A listener of a `Watch`, and what a scrape gets."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)
        self._sizes = _Histogram(_SIZES)
        self._translate, self._encode, self._publish = (_Histogram(_WORK_S) for _ in range(3))
        self._push_ack: dict[str, _Histogram] = {}
        self._event_ack: dict[str, _Histogram] = {}

    def of(self, serve: Serve, watch: Watch) -> None:
        """From now on a scrape tells of this akocore."""
        self._registry.register(_Reader(serve, watch))

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type, for a scraper's Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    # ── the hot path ────────────────────────────────────────────────────────────────────────

    def applied(self, seen: Seen) -> None:
        self._sizes.observe(seen.objects)
        publish_s = seen.publish_s
        spent_s = seen.ended - seen.began
        self._translate.observe(max(spent_s - publish_s - seen.encode_s, 0.0))
        self._encode.observe(seen.encode_s)
        self._publish.observe(publish_s)

    def acknowledged(self, publication: Publication) -> None:
        at, group = publication.acknowledged, publication.group
        if publication.pushed:
            if (known := self._push_ack.get(group)) is None:
                known = self._push_ack[group] = _Histogram(_LATENCY_S)
            known.observe(at - publication.ended)
        if publication.of_batch:
            if (known := self._event_ack.get(group)) is None:
                known = self._event_ack[group] = _Histogram(_LATENCY_S)
            known.observe(at - publication.of_batch)

    def over(self, seen: Seen) -> None:
        pass

    # ── the scrape ──────────────────────────────────────────────────────────────────────────

    def collect(self) -> Iterator[Metric]:
        """What was observed."""
        yield _histograms("batch_objects", "Objects that changed, by batch.", (), {"": self._sizes})
        yield _histograms(
            "batch_seconds",
            "Work on a batch: translate (store, translate, place), encode (resources of Envoy),"
            " publish (what differs, sent).",
            ("phase",),
            {"translate": self._translate, "encode": self._encode, "publish": self._publish},
        )
        yield _histograms(
            "push_ack_seconds",
            "From a publication to its acknowledgement by every Service Engine of the group that"
            " clients can meet.",
            ("group",),
            self._push_ack,
        )
        yield _histograms(
            "event_ack_seconds",
            "From the first event of a batch to its acknowledgement as above; with the start of"
            " engines, where there was none.",
            ("group",),
            self._event_ack,
        )


_Values = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"akocore_{name}", about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(f"akocore_{name}", about, value=value)


def _gauges(name: str, about: str, labels: tuple[str, ...], values: _Values) -> Metric:
    family = GaugeMetricFamily(f"akocore_{name}", about, labels=labels)
    for at, value in values:
        family.add_metric(at, value)
    return family


def _counters(name: str, about: str, labels: tuple[str, ...], values: _Values) -> Metric:
    family = CounterMetricFamily(f"akocore_{name}", about, labels=labels)
    for at, value in values:
        family.add_metric(at, value)
    return family


def _histograms(
    name: str, about: str, labels: tuple[str, ...], histograms: Mapping[str, _Histogram]
) -> Metric:
    family = HistogramMetricFamily(f"akocore_{name}", about, labels=labels)
    for label, histogram in histograms.items():
        histogram.add_to(family, (label,) if labels else ())
    return family


def _one(values: Mapping[str, float]) -> _Values:
    """The values of one label."""
    return (((at,), value) for at, value in values.items())


class _Reader(Collector):
    """Reads one akocore when it is scraped.  Cost: virtual services, Networks and engines."""

    def __init__(self, serve: Serve, watch: Watch) -> None:
        self._serve = serve
        self._watch = watch

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(
            "akocore",
            "This akocore.",
            value={"version": __version__, "cluster": self._serve.config.cluster_name},
        )
        lead = self._serve.lead
        yield _gauge(
            "leader",
            "1: this replica decides and writes.  Without a Lease there is only one.",
            float(lead is None or lead.held),
        )
        yield _gauge(
            "ready",
            "1: the first batch is applied, and Service Engines are answered.",
            float(self._serve.ready.is_set()),
        )
        yield from self._source()
        yield from self._objects()
        yield from self._places()
        yield from self._engines()
        yield from self._routers()
        yield from self._status()

    def _source(self) -> Iterator[Metric]:
        source, label = self._serve.source, ("kind",)
        yield _counters(
            "events_received",
            "Changes of objects that the source told.",
            label,
            _one(dict(source.received)),
        )
        yield _gauge(
            "events_pending",
            "Changed objects, or files, that wait for the next batch.",
            source.waiting,
        )
        if not isinstance(source, Cluster):
            return
        tallies = source.tallies.items()
        yield _counters(
            "informer_lists",
            "Lists of a kind: one, and one after each 410 Gone.",
            label,
            _one({kind: tally.lists for kind, tally in tallies}),
        )
        yield _counters(
            "informer_watches",
            "Watches of a kind that were begun or resumed.",
            label,
            _one({kind: tally.watches for kind, tally in tallies}),
        )
        yield _counters(
            "informer_failures",
            "Lists and watches that broke.",
            label,
            _one({kind: tally.failures for kind, tally in tallies}),
        )
        yield _gauges(
            "informer_missing",
            "1: the API server doesn't have the kind.",
            label,
            _one({one.kind: one.missing for one in source.informers.values()}),
        )

    def _objects(self) -> Iterator[Metric]:
        at = self._serve.reconciler
        stored = {kind: len(at.store.all(kind)) for kind in _STORED}
        yield _gauges("objects", "Objects that are known.", ("kind",), _one(stored))
        yield _gauge("hosts", "Hosts that are served.", len(at.hosts))
        realised = at.realiser.realised
        yield _counter("hosts_realised", "Hosts that were made into resources.", realised)
        told = self._serve.events.refused.items()
        labels = ("kind", "reason")
        yield _gauges(
            "refused_objects",
            "Objects of which something is refused.",
            labels,
            [((kind, reason), n) for (kind, reason, warning), n in told if not warning],
        )
        yield _gauges(
            "warned_objects",
            "Objects of which something is served, though not to the letter.",
            labels,
            [((kind, reason), n) for (kind, reason, warning), n in told if warning],
        )

    def _places(self) -> Iterator[Metric]:
        placement = self._serve.reconciler.placement
        shared: dict[str, float] = {}
        dedicated = hosts = l4 = listeners = gateways = gateway_hosts = 0
        for service in placement.services.values():
            if service.gateway is not None:
                gateways += 1
                gateway_hosts += len(service.gateway.hosts)
            elif service.listeners is not None:
                l4 += 1
                listeners += len(service.listeners)
            elif service.shard == DEDICATED_SHARD:
                dedicated += 1
                hosts += len(service.hosts)
            else:
                shared[service.name] = len(service.hosts)
        yield _gauges(
            "virtual_service_hosts",
            "Hosts of a shared virtual service, with those that are leaving it.",
            ("virtual_service",),
            _one(shared),
        )
        yield _gauge("dedicated_virtual_services", "Virtual services of one host.", dedicated)
        yield _gauge("dedicated_virtual_service_hosts", "Hosts of these, together.", hosts)
        yield _gauge("l4_virtual_services", "Virtual services of L4.", l4)
        yield _gauge("l4_listeners", "Listeners of these, together.", listeners)
        yield _gauge(
            "gateway_virtual_services", "Virtual services of Gateways of the Gateway API.", gateways
        )
        yield _gauge("gateway_hosts", "Hosts of these, by listener, together.", gateway_hosts)
        yield _gauge(
            "virtual_services_waiting",
            "Virtual services that have no address.",
            len(placement.waiting),
        )
        pools, label = placement.pools.items(), ("network",)
        yield _gauges(
            "network_addresses",
            "Addresses for VIPs that a Network has.",
            label,
            _one({name: pool.size for name, pool in pools}),
        )
        yield _gauges(
            "network_addresses_free",
            "Those of them that nobody has.",
            label,
            _one({name: pool.free for name, pool in pools}),
        )

    def _engines(self) -> Iterator[Metric]:
        serve = self._serve
        wanted = serve.reconciler.wanted_engines()
        processes = serve.engines.running
        streams = serve.ads.engines.values()
        groups = dict.fromkeys(
            [*wanted, *(p.group for p in processes.values()), *(e.group for e in streams)]
        )
        states = Counter({(group, state): 0 for group in groups for state in _STATES})
        rejected = Counter(dict.fromkeys(groups, 0))
        for group, count in wanted.items():
            states[group, "wanted"] = count
        for process in processes.values():
            states[process.group, "running"] += process.pid is not None
        for engine in streams:
            states[engine.group, "connected"] += 1
            states[engine.group, "ready"] += engine.answers
            rejected[engine.group] += len(engine.rejected)
        yield _gauges(
            "engines",
            "Service Engines: wanted, running as a process, connected by xDS, ready for clients.",
            ("group", "state"),
            states.items(),
        )
        yield _counters(
            "engine_restarts",
            "Starts of a Service Engine after it ended by itself.",
            ("group", "engine"),
            [((process.group, name), process.restarts) for name, process in processes.items()],
        )
        yield _counter("nacks", "Responses that Service Engines refused.", serve.ads.nacks)
        label = ("group",)
        yield _gauges(
            "rejected_resources",
            "Resources that Service Engines refuse now.",
            label,
            _one(rejected),
        )
        pending = {group: self._watch.unacknowledged(group) for group in groups}
        yield _gauges(
            "publications_unacknowledged",
            "Publications that not every engine has settled.",
            label,
            _one({group: count for group, (count, _) in pending.items()}),
        )
        yield _gauges(
            "publication_oldest_seconds",
            "How long the oldest of them has waited.",
            label,
            _one({group: seconds for group, (_, seconds) in pending.items()}),
        )

    def _routers(self) -> Iterator[Metric]:
        """Routers of Service Engines, wherever their agents are connected."""
        if (routes := self._serve.routes) is None:
            return
        routers = [r for n in self._serve.engine_names if (r := routes.router(n)) is not None]
        labels = ("engine", "peer")
        yield _gauges(
            "bgp_session_up",
            "1: the BGP session of a Service Engine is established.",
            labels,
            [((r.name, s.peer), float(not s.why)) for r in routers for s in r.bgp],
        )
        yield _gauges(
            "bfd_session_up",
            "1: the BFD session of a Service Engine is up.",
            labels,
            [((r.name, s.peer), float(s.state == "up")) for r in routers for s in r.bfd],
        )
        announcers = Counter(address for r in routers for address in r.announced)
        yield _gauges(
            "vip_announcers",
            "Service Engines that announce a VIP by BGP.",
            ("vip",),
            _one({vip: float(count) for vip, count in announcers.items()}),
        )

    def _status(self) -> Iterator[Metric]:
        sink = self._serve.sink
        if sink is None:
            return
        yield _gauge("status_waiting", "Writes of status that are due.", sink.waiting)
        yield _gauge("events_waiting", "Events to be written after them.", sink.events_waiting)
        yield _counter("status_writes", "Statuses and mirrors that were written.", sink.written)
        yield _counter("status_failures", "Writes that failed and are tried again.", sink.failed)
