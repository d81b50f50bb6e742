"""Which of several replicas decides and writes: a Lease, held by one of them at a time.

The algorithm of client-go's ``tools/leaderelection``: a holder renews in time or stops; another
takes over when it has seen no renewal for the lease's duration on its own monotonic clock, so
clocks that differ or jump do no harm.  Our own, since the ``kubernetes`` package's election blocks
a thread and costs 36 MB.

`Lease.held` is false as soon as the time to renew is over, also in a process that was stopped
(SIGSTOP) and goes on: it says no before anything can be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import orjson
from msgspec import Struct

from akocore.kube.api import ApiError, ApiServer

__all__ = ["Lease"]

log = logging.getLogger(__name__)


class _Spec(Struct, rename="camel", omit_defaults=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Meta(Struct, rename="camel"):
    resource_version: str = ""


class _Record(Struct):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)


class Lease:
    """``coordination.k8s.io/v1`` Lease ``namespace/name``, sought and kept by `run`.

    ``identity`` is ours for as long as we are the same replica: after a crash the next life of
    it goes on at once.  `on_change` is called with `held` whenever that changes.
    """

    def __init__(
        self,
        api: ApiServer,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_s: float = 15,
        renew_within_s: float = 10,
        retry_s: float = 2,
        rng: random.Random | None = None,
    ) -> None:
        self.identity = identity
        self.holder = ""
        self.tried = asyncio.Event()  # the first attempt is over, whatever came of it
        self._api = api
        self._base = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self.on_change: Callable[[bool], None] = lambda _held: None
        self._duration_s = duration_s
        self._renew_within_s = renew_within_s
        self._retry_s = retry_s
        self._rng = rng or random.Random()
        self._until = 0.0  # held so long, on the monotonic clock
        self._said = False
        self._seen: tuple[str, str | None] = ("", None)  # holder and renewal last seen ...
        self._seen_at = 0.0  # ... first at this time

    @property
    def held(self) -> bool:
        """Whether we may decide and write, at this very moment."""
        return time.monotonic() < self._until

    async def run(self) -> None:
        """Seek, keep, lose and seek again, until cancelled."""
        while True:
            wait = self._retry_s * self._rng.uniform(1, 1.2)
            try:
                left_s = await self._try()
                if left_s is not None:
                    wait = min(wait, left_s)
            except (ApiError, TimeoutError) as err:
                missing = isinstance(err, ApiError) and err.code in (403, 404)
                remedy = "Run `akocore install`." if missing else "It is tried again."
                log.warning("event=lease_not_reached why=%r remedy=%r", str(err), remedy)
                wait = min(wait, 1.0)
            self._tell()
            self.tried.set()
            if self.held:  # wake in time to say that it is over
                wait = min(wait, self._until - time.monotonic())
            await asyncio.sleep(max(wait, 0.01))
            self._tell()

    def _tell(self) -> None:
        if self.held != self._said:
            self._said = self.held
            log.info("event=%s identity=%s", "leads" if self._said else "follows", self.identity)
            self.on_change(self._said)

    async def _try(self) -> float | None:
        """Take or renew it; how long another may still hold it, or None when it is ours."""
        began = time.monotonic()
        timeout_s = max(self._renew_within_s / 2, 1)
        try:
            raw = await self._api.request("GET", f"{self._base}/{self._name}", timeout_s=timeout_s)
        except ApiError as err:
            if err.code != 404:
                raise
            spec = self._spec(_Spec())
            body = {"metadata": {"name": self._name}, "spec": msgspec.to_builtins(spec)}
            return await self._write("POST", self._base, body, began)
        record = msgspec.json.decode(raw, type=_Record)
        spec = record.spec
        self.holder = spec.holder_identity or ""
        if self.holder not in ("", self.identity):
            if (self.holder, spec.renew_time) != self._seen:
                self._seen, self._seen_at = (self.holder, spec.renew_time), began
            left_s = self._seen_at + (spec.lease_duration_seconds or 0) - began
            if left_s > 0:
                return left_s
        body = {
            "metadata": {"name": self._name, "resourceVersion": record.metadata.resource_version},
            "spec": msgspec.to_builtins(self._spec(spec)),
        }
        return await self._write("PUT", f"{self._base}/{self._name}", body, began)

    def _spec(self, old: _Spec) -> _Spec:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = old.holder_identity == self.identity
        return _Spec(
            holder_identity=self.identity,
            lease_duration_seconds=max(round(self._duration_s), 1),
            acquire_time=old.acquire_time if mine else now,
            renew_time=now,
            lease_transitions=(old.lease_transitions or 0) + (0 if mine else 1),
        )

    async def _write(
        self, method: str, path: str, body: dict[str, object], began: float
    ) -> float | None:
        body |= {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        timeout_s = max(self._renew_within_s / 2, 1)
        try:
            await self._api.request(method, path, None, orjson.dumps(body), timeout_s=timeout_s)
        except ApiError as err:
            if err.code != 409:
                raise
            return self._retry_s  # another was faster
        self.holder = self.identity
        self._until = began + self._renew_within_s
        return None

    async def release(self) -> None:
        """Give it up at a planned end, so that another need not wait."""
        held, self._until = self.held, 0.0
        if not held:
            return
        with contextlib.suppress(ApiError, TimeoutError):
            path = f"{self._base}/{self._name}"
            record = msgspec.json.decode(
                await self._api.request("GET", path, timeout_s=2), type=_Record
            )
            if record.spec.holder_identity != self.identity:
                return
            record.spec.holder_identity = None
            record.spec.lease_duration_seconds = 1
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {
                    "name": self._name,
                    "resourceVersion": record.metadata.resource_version,
                },
                "spec": msgspec.to_builtins(record.spec),
            }
            await self._api.request("PUT", path, None, orjson.dumps(body), timeout_s=2)
