"""One OpenTelemetry trace a batch: gather → apply → publish → ack.

A trace is made when its batch is over, from the times that the `Watch` has kept, and sent by a
thread of the SDK: the loop never waits for a receiver.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from akocore import __version__
from akocore.observe.watch import Publication, Seen

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Traces", "traces"]

log = logging.getLogger(__name__)

_CLOSE_S = 3.0  # a receiver that is away doesn't keep us from ending


def traces(environ: Mapping[str, str]) -> Traces | None:
    """What sends traces as the standard variables say.

    None, and a line in the log, when it can't: nobody is served worse for want of a trace.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    protocol = environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    )
    if protocol != "grpc":
        log.warning(
            "event=tracing_off why=%r remedy=%r",
            f"OTLP over {protocol} is not spoken here",
            "Set OTEL_EXPORTER_OTLP_PROTOCOL=grpc and the endpoint's port for it, mostly 4317.",
        )
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as err:
        log.warning(
            "event=tracing_off why=%r remedy=%r",
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed ({err})",
            "Run `pip install 'akocore[otel]'`, then `pip install --force-reinstall --no-deps"
            " opentelemetry-proto` (xds-protos has old files of the same names), or unset it.",
        )
        return None
    about = {"service.version": __version__}
    named = "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not named and "OTEL_SERVICE_NAME" not in environ:
        about["service.name"] = "akocore"
    provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    log.info("event=tracing_on")
    return Traces(provider)


class Traces:
    """A listener of a `Watch`.  Times become those of the wall clock as it is at the end."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace import set_span_in_context

        self._provider = provider
        self._tracer = provider.get_tracer("akocore", __version__)
        self._within = set_span_in_context

    def applied(self, seen: Seen) -> None:
        pass

    def acknowledged(self, publication: Publication) -> None:
        pass

    def over(self, seen: Seen) -> None:
        shift_ns = time.time_ns() - time.monotonic_ns()

        def ns(at: float) -> int:
            return int(at * 1e9) + shift_ns

        found = seen.publications
        root = self._tracer.start_span(
            "batch",
            attributes={
                "akocore.objects": seen.objects,
                "akocore.hosts": seen.hosts,
                "akocore.groups": [p.group for p in found],
                "akocore.sequence": [p.sequence for p in found],
            },
            start_time=ns(seen.at),
        )
        if root.is_recording():
            within = self._within(root)
            self._span("gather", within, ns(seen.at), ns(seen.began))
            self._span("apply", within, ns(seen.began), ns(seen.ended))
            for one in found:
                named: dict[str, str | int] = {
                    "akocore.group": one.group,
                    "akocore.sequence": one.sequence,
                }
                self._span("publish", within, ns(one.began), ns(one.ended), named)
                if one.acknowledged:
                    self._span("ack", within, ns(one.ended), ns(one.acknowledged), named)
        root.end(ns(max((seen.ended, *(p.acknowledged for p in found)))))

    def _span(
        self,
        name: str,
        within: Context,
        began_ns: int,
        ended_ns: int,
        attributes: Mapping[str, str | int] | None = None,
    ) -> None:
        span = self._tracer.start_span(
            name, context=within, attributes=attributes, start_time=began_ns
        )
        span.end(ended_ns)

    async def close(self) -> None:
        """Send what waits, as far as the receiver takes it in time."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, _CLOSE_S)
