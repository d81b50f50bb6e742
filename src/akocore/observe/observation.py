"""Switches on what was asked for, and nothing else."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from akocore.observe.watch import Listener, Publication, Seen, Watch

if TYPE_CHECKING:
    from akocore.observe.endpoints import Endpoints
    from akocore.observe.metrics import Metrics
    from akocore.observe.traces import Traces
    from akocore.serve import Serve

__all__ = ["ListenError", "Observation", "unready"]

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The endpoints can't be served where they were asked for."""

    def __init__(self, listen: str, why: str) -> None:
        super().__init__(
            f"--metrics-listen {listen}: {why}."
            ' Choose another HOST:PORT, or switch it off with --metrics-listen "".'
        )


class Observation:
    """``async with`` it around the life of one akocore; `of` names it once it is made.

    ``listen``: where the endpoints are; "": nowhere, and there are no metrics.  ``environ``: the
    standard variables of OpenTelemetry.  Entering raises `ListenError`.
    """

    def __init__(self, listen: str, environ: Mapping[str, str] = os.environ) -> None:
        self._listen = listen
        self._environ = environ
        self._serve: Serve | None = None
        self._metrics: Metrics | None = None
        self._endpoints: Endpoints | None = None
        self._traces: Traces | None = None
        self.watch = Watch()

    async def __aenter__(self) -> Observation:
        listeners: list[Listener] = []
        if self._listen:
            from akocore.observe.endpoints import Endpoints
            from akocore.observe.metrics import Metrics

            self._metrics = Metrics()
            listeners.append(self._metrics)
            self._endpoints = Endpoints(
                self._listen, self._metrics.text, lambda: unready(self._serve)
            )
            await self._endpoints.start()
        if self._environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or self._environ.get(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        ):
            from akocore.observe.traces import traces

            self._traces = traces(self._environ)
            if self._traces is not None:
                listeners.append(self._traces)
        if log.isEnabledFor(logging.DEBUG):
            listeners.append(_Spoken())
        self.watch = Watch(listeners)
        return self

    def of(self, serve: Serve) -> None:
        """This is the akocore that is shown; it was made with `watch`."""
        self._serve = serve
        if self._metrics is not None:
            self._metrics.of(serve, self.watch)

    async def __aexit__(self, *_: object) -> None:
        self.watch.close()
        if self._traces is not None:
            await self._traces.close()
        if self._endpoints is not None:
            await self._endpoints.stop()


def unready(serve: Serve | None) -> list[str]:
    """Why nobody should rely on this akocore yet, or any more; [] when it is ready."""
    from akocore.kube.cluster import Cluster

    if serve is None:
        return ["starting: what is remembered has not been read yet"]
    if serve.stopping:
        return ["stopping"]
    reasons = []
    if not serve.ready.is_set():
        waits = ""
        if isinstance(serve.source, Cluster) and (unlisted := serve.source.unlisted):
            waits = f": waiting for the first list of {', '.join(unlisted)}"
        reasons.append(f"the first batch is not applied{waits}")
    if not serve.ads.is_open:
        reasons.append("xDS is not open: Service Engines are not answered")
    return reasons


class _Spoken:
    """Tells each batch at level debug."""

    def applied(self, seen: Seen) -> None:
        log.debug(
            "event=batch objects=%d hosts=%d gather_ms=%.2f apply_ms=%.2f publications=%d",
            *(seen.objects, seen.hosts, 1000 * (seen.began - seen.at)),
            *(1000 * (seen.ended - seen.began), len(seen.publications)),
        )

    def acknowledged(self, publication: Publication) -> None:
        log.debug(
            "event=acknowledged group=%s sequence=%d ms=%.2f",
            *(publication.group, publication.sequence),
            1000 * (publication.acknowledged - publication.ended),
        )

    def over(self, seen: Seen) -> None:
        pass
