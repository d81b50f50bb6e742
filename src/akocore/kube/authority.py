"""Who may be a controller or a Service Engine: the certificate authority of a cluster's akocore.

Its key is a Secret in akocore's own namespace, made by the first replica that finds none.  Leaves
are renewed when two thirds of their time are over; who uses them follows the files.  Keys of
Service Engines are their own: what is signed for them is a public key.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import orjson
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from akocore.kube.api import ApiError, ApiServer
from akocore.pairs import Pair, pem

__all__ = ["AUDIENCE", "CA_CONFIG_MAP", "SECRET", "Authority", "utc_now"]

log = logging.getLogger(__name__)

SECRET = "akocore-xds-ca"
CA_CONFIG_MAP = "akocore-xds-ca"
"""What Service Engines know controllers by: the CA's certificate, without its key."""

AUDIENCE = "akocore-xds"
"""What the token of a Service Engine's pod is for: a certificate of ours, and nothing else."""

_CA_DAYS, _LEAF_DAYS, _ENGINE_DAYS = 3650, 90, 7
_SKEW = timedelta(hours=1)  # between the clocks of two machines


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
                "ca.key": base64.b64encode(pem(key)).decode(),
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

    def issue(self, common_name: str, dns: Sequence[str] = ()) -> Pair:
        """A certificate of a controller, with its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(one) for one in dns]
        return Pair(self._leaf(common_name, key.public_key(), names, _LEAF_DAYS), pem(key))

    def sign(self, key: ec.EllipticCurvePublicKey, engine: str, group: str) -> bytes:
        """A certificate of a Service Engine of ``group`` that has made its key itself."""
        uri = x509.UniformResourceIdentifier(f"spiffe://akocore/se/{group}/{engine}")
        return self._leaf(engine, key, [uri], _ENGINE_DAYS)

    def _leaf(
        self,
        common_name: str,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        days: int,
    ) -> bytes:
        """Good for either side of a connection."""
        assert self._key is not None
        issuer = x509.load_pem_x509_certificate(self.ca).subject
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        made = (
            self._builder(name, issuer, key, days)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def utc_now() -> datetime:
    return datetime.now(UTC)
