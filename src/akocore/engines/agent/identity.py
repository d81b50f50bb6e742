"""The certificate of a Service Engine that is a pod: its key is made here and stays here.

The key is made once, in a directory that goes with the pod.  A controller signs the public half,
for the token of the pod, and again when two thirds of the certificate's time are over, or when the
controllers have another authority.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from akocore.engines.agent.messages import SIGN, CertificateRequest, decode_certified, encode
from akocore.engines.envoy.bootstrap import Tls
from akocore.pairs import is_due, pem, put

__all__ = ["Identity"]

log = logging.getLogger(__name__)

_LOOK_S = 5.0
_AGAIN_FIRST_S, _AGAIN_MAX_S = 0.2, 15.0
_CALL_S = 15.0


class Identity:
    """Keeps the certificate of ``tls``, for engine ``name``.

    ``places``: where controllers sign; ``token``: the file of the pod's token, read anew each time.
    ``on_change()`` is called when `why` has changed.
    """

    def __init__(
        self,
        name: str,
        tls: Tls,
        places: Sequence[tuple[str, int]],
        token: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        look_s: float = _LOOK_S,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.why = "it has no certificate yet"  # "": it has one that is not due
        self.on_change = on_change
        self._there = asyncio.Event()
        self._name = name
        self._tls = tls
        self._places = places
        self._token = token
        self._now = now
        self._look_s = look_s

    async def there(self) -> None:
        """Wait until there is a certificate, be it one that is due."""
        await self._there.wait()

    async def run(self) -> None:
        """Have a certificate and keep it good, until cancelled."""
        failures = 0
        if self._lives():
            self._there.set()
        while True:
            why = await self._keep(failures)
            self._say(why)
            if not why:
                self._there.set()
                failures = 0
                await asyncio.sleep(self._look_s)
                continue
            failures += 1
            # The others are asked at once; then all of them again, ever more slowly.
            rounds, rest = divmod(failures, len(self._places))
            if rest == 0:
                await asyncio.sleep(min(_AGAIN_FIRST_S * 2 ** min(rounds, 8), _AGAIN_MAX_S))

    def _say(self, why: str) -> None:
        if why != self.why:
            if why:
                log.warning("event=certificate_not_had why=%r", why)
            self.why = why
            self.on_change()

    async def _keep(self, failures: int) -> str:
        """Get another certificate if this one is due; why there is none."""
        try:
            ca, key = self._tls.ca.read_bytes(), self._key()
            if self._good(_read(self._tls.certificate), ca, key):
                return ""
            token = self._token.read_text("ascii").strip()
            certificate, why = await self._signed(failures, ca, key, token)
            if certificate:
                put(self._tls.certificate, certificate)
        except (OSError, ValueError) as err:
            return str(err)
        return why

    async def _signed(
        self, failures: int, ca: bytes, key: ec.EllipticCurvePrivateKey, token: str
    ) -> tuple[bytes, str]:
        """What one of the controllers signs, or why there is nothing."""
        host, port = self._places[failures % len(self._places)]
        names = self._tls.names or (host,)
        server = names[failures // len(self._places) % len(names)]
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        asked = CertificateRequest(token=token, request=_request(self._name, key))
        certificate, why = await _ask(place, server, ca, encode(asked))
        if not why and not self._good(certificate, ca, key):
            why = "what it has signed is no good here"
        if why:
            return b"", f"{place}: {why}"
        log.info("event=certified by=%s", place)
        return certificate, ""

    def _key(self) -> ec.EllipticCurvePrivateKey:
        """Ours, made if there is none.  Raises `OSError`."""
        try:
            found = load_pem_private_key(_read(self._tls.key), None)
        except ValueError:
            found = None
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            found = ec.generate_private_key(ec.SECP256R1())
            put(self._tls.key, pem(found))
        return found

    def _good(self, certificate: bytes, ca: bytes, key: ec.EllipticCurvePrivateKey) -> bool:
        return not is_due(certificate, ca, self._now()) and self._is_of(certificate, key)

    def _is_of(self, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bool:
        found = x509.load_pem_x509_certificate(certificate)
        names = [one.value for one in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        return names == [self._name] and found.public_key() == key.public_key()

    def _lives(self) -> bool:
        """Whether an earlier life of ours has left a certificate that is not over."""
        try:
            found = x509.load_pem_x509_certificate(certificate := _read(self._tls.certificate))
            return found.not_valid_after_utc > self._now() and self._is_of(certificate, self._key())
        except (OSError, ValueError):
            return False


def _read(file: Path) -> bytes:
    """b"": there is nothing to be read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _request(name: str, key: ec.EllipticCurvePrivateKey) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


async def _ask(place: str, server: str, ca: bytes, asked: bytes) -> tuple[bytes, str]:
    """What a controller has signed, or why it has not."""
    credentials = grpc.ssl_channel_credentials(ca)
    options = (("grpc.ssl_target_name_override", server), ("grpc.enable_retries", 0))
    async with grpc.aio.secure_channel(place, credentials, options=options) as channel:
        try:
            call: Any = channel.unary_unary(SIGN)
            raw = await call(asked, timeout=_CALL_S)
            return decode_certified(raw).certificate.encode(), ""
        except grpc.aio.AioRpcError as err:
            said = err.details() or ""
            _, found, last = said.partition("last error: ")
            return b"", (last if found else said) or err.code().name
        except msgspec.MsgspecError as err:
            return b"", f"its answer can't be read: {err}"
