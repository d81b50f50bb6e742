"""One akocore: a source of objects, the loop, local Envoys, and a sink for status."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

from akocore import status, status_gateway, status_l4
from akocore.collector import left_alone
from akocore.config import Config
from akocore.control import CONTROL_SOCKET, Control
from akocore.engines.addresses import own_addresses
from akocore.engines.agent.messages import CANT_HAND_OVER
from akocore.engines.envoy.ads import AdsServer, Elsewhere
from akocore.engines.envoy.ports import may_listen, preflight
from akocore.engines.envoy.process import EngineError, Engines, Envoy
from akocore.events import Events
from akocore.interfaces import External, Lead, Sink, Source, Workloads
from akocore.kube import gateway_status
from akocore.kube.objects import Batch, Change, ReplicaRouter
from akocore.manifests import ManifestDirectory, ManifestDirectoryError
from akocore.model import Refusal
from akocore.observe.watch import Watch
from akocore.pending import Pending
from akocore.place.state import Facts, SharedFacts, State, StateError
from akocore.realise_l4 import At
from akocore.reconcile import Move, Reconciler
from akocore.route_health import RoutedEngines, RouteHealth
from akocore.slack import Slack
from akocore.turn_loop import TurnLoop

__all__ = ["Serve", "of_directory"]

log = logging.getLogger(__name__)

L4_KINDS: Final = ("Gateway", "GatewayClass", "Service")
_UPKEEP_S = 1.0
_SWITCH_S = 0.0005  # a thread that reads a big file gives way after it, not after ten times that
_PART = 1000  # Ingresses of the first batch that are applied at once: some 70 ms


def _now() -> datetime:
    return datetime.now(UTC)


def of_directory(directory: Path) -> Callable[[Facts], Source]:
    """The source of ``akocore serve DIR``."""
    return lambda state: ManifestDirectory(
        directory, state, lambda: _now().strftime("%Y-%m-%dT%H:%M:%SZ")
    )


class Serve:
    """One akocore over one source.

    ``sink``: made with this, when status is to be written.  ``shared``: what is remembered, when
    other replicas write it too (else it is kept in ``state_dir``); ``lead`` says which may.
    ``watch`` follows each batch to its acknowledgement.  ``external``: made with this and what to
    call on progress of a group, when Service Engines are not to be run here; ``envoy`` is not
    needed then.  ``engines``: made as `Engines` is; where they have routers, these announce what is
    served.  ``workloads``: made with this, who runs external ones.  ``listens``: where else akocore
    itself is, as HOST:PORT; ``namespace``: the controllers' own.
    """

    def __init__(
        self,
        source: Callable[[Facts], Source],
        state_dir: Path,
        config: Config,
        envoy: Envoy | None,
        port_offset: int = 0,
        sink: Callable[[Serve], Sink] | None = None,
        shared: SharedFacts | None = None,
        lead: Lead | None = None,
        watch: Watch | None = None,
        external: Callable[[Serve, Callable[[str], None]], External] | None = None,
        engines: Callable[..., Engines] = Engines,
        workloads: Callable[[Serve], Workloads] | None = None,
        listens: Sequence[str] = (),
        namespace: str = "",
    ) -> None:
        self.config = config
        self.port_offset = port_offset
        self.events = Events(_now)
        self.facts: Facts = State(state_dir) if shared is None else shared
        self.lead = lead
        if lead is not None:
            lead.on_change = self._lead
        self.control_socket = state_dir / CONTROL_SOCKET
        self._control = Control(self, self.control_socket)
        socket = state_dir / "xds.sock"
        asks = self._scopes_of if external is None else None
        self.ads = AdsServer(socket, self._progress, asks)
        self.ads.names_limit = config.limits.server_names
        self.ads.one_machine = external is None
        self.engines = engines(
            state_dir / "engines",
            envoy or Envoy(Path("envoy"), ""),
            socket,
            concurrency=config.envoy_concurrency,
            on_change=self._engine_changed,
        )
        self._moving: list[Move] = []
        self.reconciler = Reconciler(
            config,
            self.facts,
            self.ads,
            now=_now,
            shared=shared,
            on_move=self._moving.append,
            on_close=self._closing,
            port_offset=port_offset,
            speaks_bgp=self.engines.speaks_bgp or external is not None,
            freebind=external is not None,
            # Of a directory for engines of this machine its author has the machine itself.
            loopback=shared is None and external is None and not self.engines.speaks_bgp,
            namespace=namespace,
        )
        ports = {int(port) for at in listens if (port := at.rpartition(":")[2]).isdigit()}
        self.reconciler.know_ports(ports, own_addresses())
        self._engines_at: dict[str, frozenset[str]] = {}  # Service Engine → its addresses
        self.pending = Pending(self.reconciler, self._touch)
        self.watch = Watch() if watch is None else watch
        self.watch.wanted = self.reconciler.placement.homes_of.__contains__
        self.ads.on_publish = self.watch.published
        self.loop = TurnLoop(self.reconciler, self.watch, self._applied)
        self.source = source(self.facts)
        self.external = external(self, self._progress) if external is not None else None
        self.workloads = workloads(self) if workloads is not None else None
        self.routes = self._route_health()
        self.sink = sink(self) if sink is not None else None
        if self.sink is not None:
            self.events.on_new = self.sink.event
        self._secrets_of: dict[str, frozenset[str]] = {}  # Ingress → Secrets
        self._secret_users: Counter[str] = Counter()
        self._named: set[str] = set()  # Secrets and ConfigMaps that Gateways name
        self._routers: dict[str, ReplicaRouter] = {}  # of agents here, as they were told
        self._passwords: frozenset[str] = frozenset()  # Secrets of BGP peers
        self.file_refusals: dict[str, tuple[Refusal, ...]] = {}
        self._loaded = False  # all that there is has been applied
        self.ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._engines_due = asyncio.Event()
        self._upkeep_due = asyncio.Event()
        self._untold: set[str] = set()  # Ingresses of which something is to be said
        self._telling_due = asyncio.Event()
        self._secrets_due = asyncio.Event()
        self._fleet: dict[str, object] = {}  # group → its engines, as the mirrors say
        self._committing = asyncio.Lock()
        self._said: tuple[object, object] = (None, None)
        self._nacks_said = 0
        self._rejected_l4: set[tuple[str, At]] = set()
        self._refused_before = False  # whether an engine refused anything when it was last looked
        self._resting = 0  # old places that serve on, or rest, for a while
        self.batches = 0

    def _route_health(self) -> RouteHealth | None:
        if self.external is not None:
            routers = self.external.routers
            routes = RouteHealth(self.reconciler, routers, self.events)
            routers.opened = self.ads.opened
            routers.on_hello = lambda r: routes.adopt(
                r.name, r.life, r.announced, r.standby, r.answered
            )
            routers.on_change = self._agent_changed
            routers.on_report = self._agent_reported
            routers.on_elsewhere = self._agents_elsewhere
        elif self.engines.speaks_bgp:
            routes = RouteHealth(self.reconciler, cast("RoutedEngines", self.engines), self.events)
        else:
            return None
        routes.hurried = lambda: bool(self._moving)
        routes.on_look = self._settle_moves
        return routes

    # ── life ────────────────────────────────────────────────────────────────────────────────

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`.  Service Engines end with it; a kill -9 leaves them serving.

        Raises `EngineError`, `StateError` or `ManifestDirectoryError` when it can't start.
        """
        sys.setswitchinterval(_SWITCH_S)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        self.engines.open()
        try:
            if self.external is None:
                may_listen(80 + self.port_offset)
            await self._control.start()
            if self.external is None:
                await self.ads.start(self.ads.service())
            try:
                if self.external is not None:
                    await self.external.open()
                async with asyncio.TaskGroup() as tasks:
                    kept = [tasks.create_task(c) for c in (self._keep_engines(), self._upkeep())]
                    if self.routes is not None:
                        kept.append(tasks.create_task(self.routes.run()))
                    if self.sink is not None:
                        kept.append(tasks.create_task(self.sink.run()))
                    if self.external is not None:
                        kept.append(tasks.create_task(self.external.run()))
                    if self.lead is not None:
                        kept.append(tasks.create_task(self.lead.run()))
                        await self.lead.tried.wait()
                        self.reconciler.placement.decides = self.lead.held
                    await self._first_batch()
                    self.ads.open()
                    if self.external is not None:
                        await self.external.start()
                    self.ready.set()
                    if self.lead is not None and self.lead.held != self.reconciler.decides:
                        self._lead(self.lead.held)  # it changed while the first batch was read
                    on_ready()
                    if self.workloads is not None:
                        kept.append(tasks.create_task(self.workloads.run()))
                        self.workloads.due()
                    kept.append(tasks.create_task(self.loop.run()))
                    kept.append(tasks.create_task(self._tell()))
                    kept.append(tasks.create_task(self._keep_secrets()))
                    async for batch in self.source.watch(self._stop):
                        self._take_in(batch)
                    for task in kept:
                        task.cancel()
            except* (EngineError, StateError, ManifestDirectoryError) as group:
                raise group.exceptions[0] from None
        finally:
            await self.engines.stop_all()
            if self.external is not None:
                await self.external.stop()
            await self.ads.stop()
            await self._control.stop()
            await self._commit()
            self.facts.close()
            if self.lead is not None:
                await self.lead.release()

    def stop(self) -> None:
        self._stop.set()

    async def until_stopped(self) -> None:
        """Until somebody asks it to stop."""
        await self._stop.wait()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    async def _first_batch(self) -> None:
        """All that is there.  It stays, so the collector need not look at it, now or later."""
        with left_alone():
            began = time.perf_counter()
            batch = await self.source.first()
            read = time.perf_counter()
            await self._batch(batch)
            self._loaded = True
            self._engines_due.set()
            self.reconciler.forget_absent()
            log.info(
                "event=loaded objects=%d read_ms=%.0f apply_ms=%.0f",
                *(len(batch.changes), (read - began) * 1000, (time.perf_counter() - read) * 1000),
            )
            if self.external is None:
                await asyncio.to_thread(self._warn_of_taken_ports)
            gc.collect()
            gc.freeze()

    async def _apply(self, changes: tuple[Change, ...]) -> set[str]:
        """Apply all that there is, in parts, to engines that have nothing yet.

        Between two parts engines of ours are started and take in the clusters of the first; what
        clients can meet they get when it is complete.
        """
        if self.ready.is_set() or self.external is not None or self.routes is not None:
            return self.reconciler.apply(changes)
        ingresses = [one for one in changes if one.kind == "Ingress"]
        parts = [ingresses[at : at + _PART] for at in range(0, len(ingresses), _PART)] or [[]]
        parts[0] = [*(one for one in changes if one.kind != "Ingress"), *parts[0]]
        touched: set[str] = set()
        for number, part in enumerate(parts, 1):
            touched |= self.reconciler.apply(part)
            if number < len(parts):
                self._engines_due.set()
                await asyncio.sleep(0.001)
        return touched

    async def _batch(self, batch: Batch) -> None:
        """Apply all of the first batch, and say what came of it."""
        self.batches += 1
        with self.watch.batch(batch, self.reconciler.realiser):
            touched = await self._apply(batch.changes)
        self.loop.begin(batch.received)
        self._applied(batch.changes, touched)
        self._say_files(batch)
        await self._say_all()
        more = await self._follow_secrets()
        if more is not None:
            await self._batch(more)

    def _take_in(self, batch: Batch) -> None:
        """What has changed since: each has its turn."""
        self.batches += 1
        self.loop.add(batch)
        self._say_files(batch)

    def _applied(self, changes: Sequence[Change], touched: set[str]) -> None:
        if self.external is not None:
            self.external.received(Batch((), {}, 0.0, self.loop.received))
        if self.sink is not None:
            for change in changes:
                if change.kind in ("AviInfraSetting", "Network"):
                    self.sink.touch(change.kind, change.key)
        self._placed()
        self._untold |= touched
        self._telling_due.set()

    def _say_files(self, batch: Batch) -> None:
        for path, refusals in batch.refusals.items():
            self.file_refusals.pop(path, None)
            if refusals:
                self.file_refusals[path] = tuple(refusals)
            self.events.refusals(f"File/{path}", refusals)

    async def _tell(self) -> None:
        """Make durable what was decided, then say it."""
        while True:
            await self._telling_due.wait()
            self._telling_due.clear()
            await self._say_all()

    async def _say_all(self) -> None:
        touched, self._untold = self._untold, set()
        await self._commit()
        self._say(touched)
        self._say_l4()
        self.say_faults()
        infrastructure, named = self.reconciler.infrastructure, self.reconciler.gateway_api.named
        passwords = infrastructure.password_secrets
        if self._count_secrets(touched) or named != self._named or passwords != self._passwords:
            self._named, self._passwords = set(named), passwords
            self._secrets_due.set()

    async def _keep_secrets(self) -> None:
        """Follow the Secrets that somebody names.  One that doesn't come holds up nobody."""
        while True:
            await self._secrets_due.wait()
            more = await self._follow_secrets()
            if more is not None:
                self._take_in(more)

    async def _follow_secrets(self) -> Batch | None:
        if not self._secrets_due.is_set():
            return None
        self._secrets_due.clear()
        secrets = {f"Secret/{key}" for key in (*self._secret_users, *self._passwords)}
        return await self.source.follow(secrets | self._named)

    def _placed(self) -> None:
        """Follow up what the reconciler has placed: engines, status, mirrors."""
        self._engines_due.set()
        self._say(self.reconciler.forget_strays())
        self.pending.take()
        self._touch_mirrors()

    async def scaled(self, vs: str) -> None:
        """A virtual service was given another number of Service Engines."""
        self.reconciler.realiser.vs_touched.add(vs)
        self._placed()
        await self._commit()

    def _touch_mirrors(self) -> None:
        touched = self.reconciler.realiser.vs_touched
        if self.routes is not None:
            self.routes.touched(touched)
        if self.sink is not None:
            for name in touched:
                self.sink.touch("VirtualService", name)
        touched.clear()

    def _say_l4(self) -> None:
        """Events and status of what L4 and the Gateway API have touched."""
        at = self.reconciler
        touched, at.l4.touched = at.l4.touched, set()
        self._say_of(touched, status_l4.refusals)
        touched, at.gateway_api.touched = at.gateway_api.touched, set()
        self._say_of(touched, status_gateway.refusals, gateway_status.KINDS)

    def _say_of(
        self,
        touched: Iterable[tuple[str, str]],
        refusals_of: Callable[[Reconciler, str, str], list[Refusal] | None],
        written: Collection[str] | None = None,
    ) -> None:
        """Events of these objects, and status of those of kinds that have it (None: all)."""
        for kind, key in touched:
            object_ = f"{kind}/{key}"
            faults = self.reconciler.faults
            unit = ("status", object_)
            refusals = faults.run(unit, object_, refusals_of, self.reconciler, kind, key)
            if refusals is None and not faults.of(object_):
                self.events.forget(object_)
            else:
                self.events.refusals(object_, refusals or faults.of(object_))
            if self.sink is not None and (written is None or kind in written):
                self.sink.touch(kind, key)

    def say_faults(self) -> None:
        """Events and status of the objects that we failed over, or no longer do."""
        at = self.reconciler
        for _ in range(2):  # a status that can be told again is told without its own fault
            touched, at.faults.touched = at.faults.touched, set()
            for object_ in sorted(touched):
                kind, _, key = object_.partition("/")
                if kind == "Ingress":
                    self._say({key})
                elif kind in L4_KINDS and (kind != "Service" or key in at.l4.services):
                    at.l4.touched.add((kind, key))
                elif kind in gateway_status.KINDS:
                    at.gateway_api.touched.add((kind, key))
                elif kind in ("AviInfraSetting", "Network"):
                    self.events.refusals(object_, at.infrastructure.refusals(kind, key))
                    if self.sink is not None:
                        self.sink.touch(kind, key)
                else:
                    self.events.refusals(object_, at.faults.of(object_))
                if kind == "Service":
                    self._say(set(at.store.referrers(kind, key)))
                    at.gateway_api.touch_referrers(object_)
            self._say_l4()

    def _lead(self, held: bool) -> None:
        if not self.ready.is_set():
            return  # `run` looks when it is ready
        self.reconciler.lead(held)
        self._placed()
        self._say_l4()
        if held and self.sink is not None:
            self.sink.touch_all()
        self._upkeep_due.set()

    def address_taken(self, address: str) -> None:
        """An address that was given here turns out to be another replica's."""
        self.reconciler.address_taken(address)
        self._placed()
        self._say_l4()
        self.events.say(
            "State", "Warning", "AddressTaken", f"{address} is another's already: another is taken."
        )

    def _count_secrets(self, touched: set[str]) -> bool:
        """Keep account of the Secrets that our Ingresses name; whether there are others now."""
        before = self._secret_users.keys() - ()
        at = self.reconciler
        for key in touched:
            ingress = at.store.ingress(key)
            ours = ingress is not None and at.is_ours(ingress)
            now = frozenset(s for s, _ in at.store.view(key).tls.values()) if ours else frozenset()
            old = self._secrets_of.pop(key, frozenset())
            if now:
                self._secrets_of[key] = now
            self._secret_users.update(now)
            self._secret_users.subtract(old)
            for secret in old:
                if not self._secret_users[secret]:
                    del self._secret_users[secret]
        return before != self._secret_users.keys()

    def _touch(self, keys: Iterable[str]) -> None:
        if self.sink is not None:
            for key in keys:
                self.sink.touch("Ingress", key)

    def _say(self, touched: set[str]) -> None:
        """Events of the touched Ingresses, and of settings and Networks when these changed."""
        at = self.reconciler
        self._touch(touched)
        self._say_joined()
        for key in touched:
            object_ = f"Ingress/{key}"
            if at.store.ingress(key) is None:
                self.events.forget(object_)
            else:
                unit = ("status", object_)
                found = at.faults.run(unit, object_, status.ingress_refusals, at, key)
                self.events.refusals(object_, at.faults.of(object_) if found is None else found)
        said = (at.infrastructure.setting_refusals, at.infrastructure.network_refusals)
        if said[0] is not self._said[0] or said[1] is not self._said[1]:
            for name, refusals in at.infrastructure.setting_refusals.items():
                self.events.refusals(f"AviInfraSetting/{name}" if name else "Config", refusals)
                if self.sink is not None and name:
                    self.sink.touch("AviInfraSetting", name)
            for name, refusals in at.infrastructure.network_refusals.items():
                self.events.refusals(f"Network/{name}", refusals)
                if self.sink is not None:
                    self.sink.touch("Network", name)
            self._said = said

    def _say_joined(self) -> None:
        """Owners of hosts, and who has joined one of another namespace: both are told."""
        claims = self.reconciler.claims
        joined, claims.joined = claims.joined, []
        for one in joined:
            name, namespace = one.host or "Any host", one.guest.partition("/")[0]
            note = f"Ingress {one.guest} of namespace {namespace} has joined {name}."
            self.events.say(f"Ingress/{one.owner}", "Normal", "HostJoined", note)
            note = f"{name} is Ingress {one.owner}'s, with its certificate and redirect."
            self.events.say(f"Ingress/{one.guest}", "Normal", "HostShared", note)

    async def _commit(self) -> None:
        async with self._committing:  # in order: an older fact never overwrites a newer one
            kept = self.external.mark() if self.external is not None else None
            try:
                await self.facts.flush()
            except StateError as err:
                self.events.say("State", "Warning", "StateNotWritten", str(err))
                return
            if kept is not None:
                kept()

    async def _keep_engines(self) -> None:
        """Run the Service Engines that the virtual services need, and no others."""
        while True:
            await self._engines_due.wait()
            self._engines_due.clear()
            if self.workloads is not None:
                self.workloads.due()
            names: set[str] = set()
            wanted = self.reconciler.wanted_engines() if self.external is None else {}
            for group, count in wanted.items():
                mine = [f"{group}-se-{i + 1}" for i in range(count)]
                names.update(mine)
                await self.engines.ensure(group, mine)
            surplus = [name for name in self.engines.running if name not in names]
            if surplus and self._loaded:
                await self.engines.stop(surplus)

    async def _upkeep(self) -> None:
        """What no event announces: a disk with room again, a free port, an expired certificate."""
        slack = Slack()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_UPKEEP_S):
                    await self._upkeep_due.wait()
            self._upkeep_due.clear()
            await self._commit()
            self._give_back(slack)
            self.ads.retry_listeners()
            if self.routes is not None and self.routes.lacks:
                self._engines_due.set()
            self.reconciler.faults.run(("upkeep",), "Config", self._follow_expired)
            self.say_faults()

    def _follow_expired(self) -> None:
        self._say(self.reconciler.realiser.expire())
        if self.reconciler.follow_expired():
            self._placed()
            self._say_l4()

    def _give_back(self, slack: Slack) -> None:
        done, waiting = self.source.received.total(), self.source.waiting
        if self.sink is not None:
            done += self.sink.written
            waiting += self.sink.waiting + self.sink.events_waiting
        waiting += self.loop.waiting
        busy = not self._loaded or bool(waiting) or bool(self.pending)
        slack.look(done, busy=busy)

    def _warn_of_taken_ports(self) -> None:
        if self.engines.speaks_bgp:
            return  # their addresses are not this machine's
        addresses = (
            {
                (home.address, port.port + self.port_offset)
                for service in self.reconciler.placement.services.values()
                if service.listeners is None
                for home in service.homes
                for port in service.infra.listeners
            }
            | {
                (home.address, port + self.port_offset)
                for service in self.reconciler.placement.services.values()
                for home in service.homes
                for (protocol, port), placed in (service.listeners or {}).items()
                if protocol == "TCP" and placed.model.pool is not None
            }
            | {
                (home.address, port + self.port_offset)
                for service in self.reconciler.placement.services.values()
                if service.gateway is not None
                for home in service.homes
                for protocol, port in service.gateway.ports
                if protocol == "TCP"
            }
        )
        own = {process.pid for process in self.engines.running.values() if process.pid}
        try:
            preflight(sorted(addresses), own)
        except EngineError as err:
            for line in str(err).splitlines():
                self.events.say("Config", "Warning", "AddressInUse", line)

    # ── what the engines tell ───────────────────────────────────────────────────────────────

    def _engine_changed(self, name: str) -> None:
        if self.sink is not None:
            self.sink.touch("ServiceEngine", name)
        if self.routes is not None:
            self.routes.engine_changed(name)
            self._know_engines()
        process = self.engines.running.get(name)
        if process is None:
            return
        if process.pid is None:
            self.events.say(f"ServiceEngine/{name}", "Warning", "EngineDown", process.last_exit)
        else:
            note = f"pid {process.pid}, restarts {process.restarts}"
            self.events.say(f"ServiceEngine/{name}", "Normal", "EngineStarted", note)

    def _agent_changed(self, name: str) -> None:
        """The agent of a Service Engine came or went, or its Envoy is another one."""
        if self.routes is not None:
            self.routes.engine_changed(name)
        self._agent_reported(name)

    def _agent_reported(self, name: str) -> None:
        """An agent said something; most of it is no news.  Cost, when it is: its mirrors."""
        assert self.external is not None
        assert self.routes is not None
        report = self.external.routers.reports().get(name)
        if report is not None:
            self.routes.heard(name, report.observed)
        before, now = self._routers.pop(name, None), self.routes.router(name)
        if now is not None:
            self._routers[name] = now
        for problem in report.problems if report is not None else ():
            if problem.startswith(CANT_HAND_OVER) and (before is None or problem not in before.why):
                said = f"{problem[:1].upper()}{problem[1:]}"
                self.events.say(f"ServiceEngine/{name}", "Warning", "FlowsNotHandedOver", said)
        if now != before:
            self._know_engines()
            self.external.routed()
            self._touch_routed({name}, self.routes.concerned(before, now))

    def _know_engines(self) -> None:
        """Nothing is an endpoint where a Service Engine is.  Cost: all of these."""
        routes = self.routes
        if routes is None:
            return
        known = self.engine_names
        before, now = self._engines_at, routes.addresses()
        self._engines_at = {n: at for n, at in (before | now).items() if n in known}
        if self._engines_at != before:
            found = {a: f"Service Engine {n}" for n, at in self._engines_at.items() for a in at}
            self._say(self.reconciler.know_engines(found))
            self._say_l4()

    def _touch_routed(self, engines: Iterable[str], services: Iterable[str]) -> None:
        """The routers of these Service Engines do something else, with these virtual services."""
        if self.sink is None:
            return
        for name in engines:
            self.sink.touch("ServiceEngine", name)
        for name in services:
            self.sink.touch("VirtualService", name)

    def _agents_elsewhere(self) -> None:
        """What other replicas say of their agents has changed."""
        assert self.routes is not None
        self._know_engines()
        self._touch_routed(*self.routes.elsewhere_changed())

    @property
    def waits(self) -> bool:
        """Whether something is to be shown when the engines have it."""
        return bool(self._moving) or bool(self.pending)

    @property
    def unsettled(self) -> int:
        """Moves, old places that rest, and facts that are not written yet."""
        return len(self._moving) + self._resting + self.facts.waiting

    def engine_forgotten(self, name: str) -> None:
        """A Service Engine that was no process of ours went long ago."""
        self._know_engines()
        if self.sink is not None:
            self.sink.touch("ServiceEngine", name)

    @property
    def engine_names(self) -> set[str]:
        """Every Service Engine that there is, or was not long ago."""
        return {*self.engines.running, *self.ads.fleet, *self.ads.lost, *self.agents()}

    def agents(self) -> dict[str, str]:
        """Group of each Service Engine that has an agent, wherever that is connected."""
        if self.external is None:
            return {}
        routers = self.external.routers
        others = {name: router.group for name, router in routers.elsewhere.items()}
        return others | {name: report.group for name, report in routers.reports().items()}

    def _progress(self, group: str) -> None:
        self.loop.progressed()
        nacks = self.ads.nacks + sum(e.nacks for e in self.ads.elsewhere.values())
        if nacks != self._nacks_said or self.reconciler.realiser.court.busy:
            self.reconciler.judge()
        if self.external is not None:
            self.external.progressed()
        fleet = [
            (e.name, e.answers, len(e.rejected), isinstance(e, Elsewhere) and e.controller)
            for e in self.ads.fleet.values()
            if e.group == group
        ]
        if self._fleet.get(group) != fleet:
            self._fleet[group] = fleet
            self._fleet_changed(group)
        acknowledged = self.ads.acknowledged(group)
        self.watch.acknowledged(group, acknowledged if any(e[1] for e in fleet) else None)
        self.pending.acknowledged(group, acknowledged)
        self._touch_mirrors()
        self._say_l4()
        self._settle_moves()
        if self.routes is not None:
            self.routes.acknowledged()
        otherwise, self.reconciler.told_otherwise = self.reconciler.told_otherwise, set()
        if nacks != self._nacks_said:
            self._nacks_said = nacks
            otherwise |= self.reconciler.realiser.rejected_ingresses()
            self._say_rejected_l4()
        if otherwise:
            self._say(otherwise)

    def _settle_moves(self) -> None:
        for move in list(self._moving):
            if self._is_carried(move) and all(
                self.ads.acknowledged(g) >= n for g, n in move.waits.items()
            ):
                self._moving.remove(move)
                self.reconciler.settle_move(move)
                self._touch_mirrors()
                self._say_l4()
                for host in self.reconciler.hosts_of_move(move):
                    self._touch(self.reconciler.store.ingresses_of_host(host))
                self._resting += 1
                loop = asyncio.get_running_loop()
                loop.call_later(self.config.move_grace_seconds, self._finish, move)

    def _is_carried(self, move: Move) -> bool:
        """Where addresses are announced, whether routers know the way to the new ones."""
        at = self.reconciler
        return self.routes is None or all(
            self.routes.carried(at.placement.services[at.hosts[host].vs])
            for host in at.hosts_of_move(move)
            if host in at.hosts
        )

    def _say_rejected_l4(self) -> None:
        """What engines refuse of L4, or no longer do.  Cost: nothing while they refuse nothing."""
        before, self._rejected_l4 = self._rejected_l4, set(status_l4.rejected(self.reconciler))
        for vs, at in before | self._rejected_l4:
            self.reconciler.l4.touch_listener(vs, at)
        refused = any(engine.rejected for engine in self.ads.fleet.values())
        if refused or self._refused_before:
            self.reconciler.gateway_api.touch_all()
        self._refused_before, refused_before = refused, self._refused_before
        if before or self._rejected_l4 or refused or refused_before:
            self._say_l4()

    def _fleet_changed(self, group: str) -> None:
        self._say_rejected_l4()
        if self.sink is not None:
            for service in self.reconciler.placement.services.values():
                if any(home.group == group for home in service.homes):
                    self.sink.touch("VirtualService", service.name)
            for name in self.engine_names:
                self.sink.touch("ServiceEngine", name)

    def _finish(self, move: Move) -> None:
        """The time of a move is over: give up the old places, unless a status still names one.

        Whoever is to write that may have been killed, or have no API server: its time begins
        when it is written.
        """
        if self._stop.is_set():
            return
        later = asyncio.get_running_loop().call_later
        if self.sink is not None and self.reconciler.is_named(move):
            move.named = True
            later(_UPKEEP_S, self._finish, move)
        elif move.named:
            move.named = False
            later(self.config.move_grace_seconds, self._finish, move)
        else:
            self._resting -= 1
            self.reconciler.finish_move(move)
            self._placed()
            self._say_l4()

    def _closing(self, then: Callable[[], None]) -> None:
        """An Envoy keeps the connections of a dropped listener for its drain time."""

        self._resting += 1

        def drained() -> None:
            self._resting -= 1
            if not self._stop.is_set():
                then()
                self._placed()
                self._say_l4()

        asyncio.get_running_loop().call_later(self.engines.drain_s + 1, drained)

    async def _scopes_of(self, name: str) -> list[str] | None:
        try:
            return await self.engines.admin(name, timeout_s=30).scopes()
        except EngineError as err:
            log.warning("event=scopes_not_read se=%s why=%r", name, str(err))
            return None
