"""A certificate authority of a test, and what it signs."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from msgspec import Struct

_DAY = datetime.timedelta(days=1)


class Pair(Struct, frozen=True):
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


class Authority:
    """One CA; `ca` is its certificate's file, in ``home``."""

    def __init__(self, home: Path, name: str = "ca") -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.ca = home / f"{name}.crt"
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca.write_bytes(self._sign(self._name, self._key.public_key(), [], ca=True))

    def issue(
        self,
        file: str,
        common_name: str = "",
        *,
        dns: Sequence[str] = (),
        uris: Sequence[str] = (),
        ips: Sequence[str] = (),
    ) -> Pair:
        """Write ``file``.crt and ``file``.key, each with one rename."""
        key = ec.generate_private_key(ec.SECP256R1())
        attribute = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in dns]
        names += [x509.UniformResourceIdentifier(one) for one in uris]
        names += [x509.IPAddress(ip_address(one)) for one in ips]
        pem = self._sign(x509.Name(attribute), key.public_key(), names, ca=False)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pair = Pair(self.home / f"{file}.crt", self.home / f"{file}.key")
        for path, text in ((pair.certificate, pem), (pair.key, private)):
            part = path.with_suffix(f"{path.suffix}.part")
            part.write_bytes(text)
            part.replace(path)
        return pair

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        *,
        ca: bool,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
