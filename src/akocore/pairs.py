"""Certificates and their keys as PEM files: when one is due, and how it is replaced."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from msgspec import Struct

__all__ = ["Pair", "is_due", "pem", "put", "write_pair"]


class Pair(Struct, frozen=True):
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key as it is written."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def is_due(certificate: bytes, ca: bytes, now: datetime) -> bool:
    """Whether a leaf must be renewed: two thirds of its time are over, or it is not of this CA."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        issuer = x509.load_pem_x509_certificate(ca)
        found.verify_directly_issued_by(issuer)
    except Exception:  # whatever is wrong with it, another one is made
        return True
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    return now > begin + (end - begin) * 2 / 3


def put(file: Path, text: bytes) -> None:
    """Write a file that is its owner's alone, by one rename.  Raises `OSError`."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(text)
    part.replace(file)


def write_pair(directory: Path, pair: Pair, ca: bytes) -> None:
    """``tls.crt``, ``tls.key`` and ``ca.crt``, each by one rename.  Raises `OSError`."""
    for name, text in (("ca.crt", ca), ("tls.key", pair.key), ("tls.crt", pair.certificate)):
        put(directory / name, text)
