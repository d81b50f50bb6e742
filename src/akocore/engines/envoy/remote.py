"""Service Engines that are no processes of ours: discovery on TCP, over mutual TLS.

An engine is who its certificate says: its node id must be the certificate's common name, a DNS
name, or ``NAME`` in a URI that ends in ``/se/NAME``.  A URI that ends in ``/se/GROUP/NAME`` binds
it to a group as well, whatever its other names are: no engine can pose as another, and one that
is bound to a group is given nothing that only another group uses.

Nothing but discovery, and what its agent asks, is offered here.  Who has no certificate, or one
of another CA, gets no further than the handshake; the gRPC library writes the reason to the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from akocore.engines.agent.routers import Routers
from akocore.engines.envoy.ads import AdsServer
from akocore.engines.envoy.process import EngineError, may_name
from akocore.kube.objects import Batch
from akocore.unix_server import UNLIMITED

__all__ = ["Alone", "RemoteServer", "Say", "TlsFiles", "stranger"]

log = logging.getLogger(__name__)

_OPTIONS = (
    *UNLIMITED,
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    # An engine whose machine is gone holds nobody up for long; nor do we take its own pings amiss.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Who has shown no certificate yet is nobody: neither for long nor in any number.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_allowed_incoming_connections", 4_096),
)

Say = Callable[[str, str, str, str], None]
"""`Events.say`."""


class TlsFiles:
    """Our certificate, its key and the CA of the engines: PEM files that may be replaced.

    ``on_new(problem)`` hears of each replacement, in any thread; a problem: the old ones stay.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path) -> None:
        self.on_new: Callable[[str], None] = lambda _problem: None
        self._files = (certificate, key, client_ca)
        self._seen = self._stamp()
        self._first = self._load()

    def credentials(self, *, of_clients: bool = True) -> grpc.ServerCredentials:
        """Each connection is greeted with the files as they are then.

        ``of_clients``: they must show a certificate.  What has the credentials has these files to
        itself: a replacement is seen once.
        """
        fetch: Any = self._fetch
        return grpc.dynamic_ssl_server_credentials(
            self._first, fetch, require_client_authentication=of_clients
        )

    def _stamp(self) -> object:
        try:
            return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in (f.stat() for f in self._files)]
        except OSError as err:
            return str(err)

    def _load(self) -> grpc.ServerCertificateConfiguration:
        """Raises `EngineError` that names the file."""
        texts = []
        for file in self._files:
            try:
                texts.append(file.read_bytes())
            except OSError as err:
                raise EngineError(f"{file}: {err.strerror}. Give a readable PEM file.") from err
        (chain, key, client_ca), (chain_file, key_file, ca_file) = texts, self._files
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0].public_key().public_bytes(*form)
        except ValueError as err:
            raise EngineError(f"{chain_file} has no PEM certificate: {err}.") from err
        try:
            own = load_pem_private_key(key, None).public_key().public_bytes(*form)
        except (ValueError, TypeError) as err:
            raise EngineError(f"{key_file} has no PEM key without a password: {err}.") from err
        if own != leaf:
            raise EngineError(f"{key_file} is not the key of the certificate in {chain_file}.")
        try:
            x509.load_pem_x509_certificates(client_ca)
        except ValueError as err:
            raise EngineError(f"{ca_file} has no PEM certificate: {err}.") from err
        return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by the gRPC library before each handshake; None: as before."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        try:
            found = self._load()
        except EngineError as err:
            self.on_new(str(err))
            return None
        self.on_new("")
        return found


def stranger(auth: Mapping[str, Iterable[bytes]], name: str, group: str) -> str:
    """Why a peer may not be engine ``name`` of ``group``; "": it may.

    ``auth``: what gRPC has found in its certificate.
    """

    def texts(key: str) -> list[str]:
        return [value.decode("utf-8", "replace") for value in auth.get(key, ())]

    names = {*texts("x509_common_name"), *texts("peer_dns")} - {""}
    bound: set[tuple[str, str]] = set()
    for uri in texts("peer_uri"):
        match urlsplit(uri).path.split("/"):
            case [*_, "se", in_group, one] if in_group and one:
                bound.add((in_group, one))
            case [*_, "se", one] if one:
                names.add(one)
    if bound:
        names = {one for _, one in bound}
    if not may_name(name) or name not in names:
        return f"its certificate is of {' or '.join(sorted(names)) or 'nobody'}, not of {name!r}"
    if bound and (group, name) not in bound:
        own = " or ".join(sorted(of for of, one in bound if one == name))
        return f"its certificate is for group {own}, not for {group!r}"
    return ""


class Alone:
    """The one akocore of its engines elsewhere: there is no other replica to keep in touch with."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server
        self.routers = server.routers

    async def open(self) -> None:
        """Take the port.  Raises `EngineError`."""
        self._server.bind()

    async def start(self) -> None:
        await self._server.start()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        await self._server.stop()

    def received(self, batch: Batch) -> None:
        pass

    def mark(self) -> Callable[[], None]:
        return lambda: None

    def progressed(self) -> None:
        pass

    def routed(self) -> None:
        pass


class RemoteServer:
    """Discovery for engines elsewhere, at ``listen`` ("host:port")."""

    def __init__(self, listen: str, files: TlsFiles, ads: AdsServer, say: Say) -> None:
        self._listen = listen
        self._files = files
        self._ads = ads
        self._say = say
        self.before: Callable[[str], Awaitable[None]] | None = None  # an engine is let in
        self.routers = Routers()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: grpc.aio.Server | None = None

    def bind(self) -> int:
        """Take the port; `start` answers on it.  Raises `EngineError`."""
        self._loop = asyncio.get_running_loop()
        self._files.on_new = self._on_new
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(
            (self._ads.service(self._admit), self.routers.service(self._admit))
        )
        try:
            port = server.add_secure_port(self._listen, self._files.credentials())
        except RuntimeError as err:
            raise EngineError(
                f"{self._listen} can't be listened on. Give a free port to --xds-listen."
            ) from err
        self._server = server
        log.info("event=xds_listens at=%s port=%d", self._listen, port)
        return port

    async def start(self) -> None:
        assert self._server is not None
        await self._server.start()

    async def stop(self) -> None:
        """End all streams: the engines go to another replica, or wait for the next of us."""
        if self._server is not None:
            self._ads.send_away()
            self.routers.send_away()
            await self._server.stop(0.2)

    async def _admit(self, context: Any, name: str, group: str) -> None:
        auth = context.auth_context()
        if why := stranger(auth, name, group):
            host = context.peer().rpartition(":")[0]
            note = f"An engine at {host} was refused: {why} (serial number {_serial(auth)})."
            self._say(f"ServiceEngine/{name}", "Warning", "IdentityRefused", note)
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{name} is refused: {why}. Give the engine its own certificate, or its own name.",
            )
        if self.before is not None:
            await self.before(name)

    def _on_new(self, problem: str) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._replaced, problem)

    def _replaced(self, problem: str) -> None:
        if problem:
            note = f"{problem} Engines are greeted with the one before."
            self._say("Config", "Warning", "XdsCertificateRefused", note)
        else:
            note = "New connections of engines are greeted with the new one."
            self._say("Config", "Normal", "XdsCertificateReplaced", note)


def _serial(auth: Mapping[str, Iterable[bytes]]) -> str:
    for pem in auth.get("x509_pem_cert", ()):
        return f"{x509.load_pem_x509_certificate(pem).serial_number:x}"
    return "?"
