"""Who may be a controller or a Service Engine: the certificate authority of a cluster's akocore.

Its key is a Secret in akocore's own namespace, made by the first replica that finds none.  Leaves
are renewed when two thirds of their time are over; who uses them follows the files.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from akocore.kube.api import ApiError, ApiServer

__all__ = ["SECRET", "Authority", "Pair", "is_due", "utc_now", "write_pair"]

log = logging.getLogger(__name__)

SECRET = "akocore-xds-ca"
_CA_DAYS, _LEAF_DAYS = 3650, 90
_SKEW = timedelta(hours=1)  # between the clocks of two machines


class Pair(Struct, frozen=True):
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def is_due(certificate: bytes, ca: bytes, now: datetime) -> bool:
    """Whether a leaf must be renewed: it is old, unreadable, or not of this CA."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        issuer = x509.load_pem_x509_certificate(ca)
        found.verify_directly_issued_by(issuer)
    except Exception:  # whatever is wrong with it, another one is made
        return True
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    return now > begin + (end - begin) * 2 / 3


def write_pair(directory: Path, pair: Pair, ca: bytes) -> None:
    """``tls.crt``, ``tls.key`` and ``ca.crt``, each by one rename.  Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, text in (("ca.crt", ca), ("tls.key", pair.key), ("tls.crt", pair.certificate)):
        part = directory / f"{name}.part"
        part.touch(mode=0o600)
        part.write_bytes(text)
        part.replace(directory / name)


class Authority:
    """``load`` comes first; then ``ca`` is its certificate."""

    def __init__(self, api: ApiServer, namespace: str, now: Callable[[], datetime]) -> None:
        self.ca = b""
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._now = now
        self._key: ec.EllipticCurvePrivateKey | None = None

    async def load(self) -> None:
        """Read the CA, or make it.  Raises `ApiError`."""
        try:
            raw = await self._api.request("GET", f"{self._path}/{SECRET}")
        except ApiError as err:
            if err.code != 404:
                raise
            raw = await self._create()
        data = orjson.loads(raw)["data"]
        self.ca = base64.b64decode(data["ca.crt"])
        key = load_pem_private_key(base64.b64decode(data["ca.key"]), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    async def _create(self) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "akocore xDS")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = (
            self._builder(name, name, key.public_key(), _CA_DAYS)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "labels": {"app.kubernetes.io/managed-by": "akocore"}},
            "data": {
                "ca.crt": base64.b64encode(made.public_bytes(Encoding.PEM)).decode(),
                "ca.key": base64.b64encode(_pem(key)).decode(),
            },
        }
        try:
            raw = await self._api.request("POST", self._path, None, orjson.dumps(body))
        except ApiError as err:
            if err.code != 409:
                raise
            return await self._api.request("GET", f"{self._path}/{SECRET}")  # another's
        log.info("event=authority_made secret=%s", SECRET)
        return raw

    def _builder(
        self, name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
    ) -> x509.CertificateBuilder:
        now = self._now()
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + timedelta(days=days))
        )

    def issue(self, common_name: str, dns: Sequence[str] = (), uris: Sequence[str] = ()) -> Pair:
        """A leaf, good for either side of a connection."""
        assert self._key is not None
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate(self.ca).subject
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        made = (
            self._builder(name, issuer, key.public_key(), _LEAF_DAYS)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
        )
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in dns]
        names += [x509.UniformResourceIdentifier(one) for one in uris]
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return Pair(certificate, _pem(key))


def utc_now() -> datetime:
    return datetime.now(UTC)
