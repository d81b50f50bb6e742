"""A Secret as a certificate that Envoy will take, or why it can't be."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from functools import lru_cache
from typing import Final

from msgspec import Struct

from akocore.kube.objects import Secret

__all__ = ["Certificate", "CertificateProblem", "bundle", "certificate"]


_BEGIN: Final = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")


class Certificate(Struct, frozen=True, gc=False):
    """A chain and its key (PEM).  ``not_after``: Unix seconds, when it must be refused."""

    chain: bytes
    key: bytes
    not_after: float


class CertificateProblem(Struct, frozen=True, gc=False):
    """Why a Secret can't serve: which part of it, reason, remedy."""

    field: str
    reason: str
    remedy: str


def _pem(secret: Secret, name: str) -> bytes | CertificateProblem:
    if secret.string_data and name in secret.string_data:
        return secret.string_data[name].encode(errors="replace")
    text = secret.data.get(name) if secret.data else None
    if not text:
        return CertificateProblem(
            f"data[{name}]", "InvalidCertificate", f"Secret has no {name}. Add tls.crt and tls.key."
        )
    try:
        # Line ends are no part of it, as for the API server.
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except ValueError:
        return CertificateProblem(
            f"data[{name}]", "InvalidCertificate", "It is not base64. Encode the PEM text."
        )


def certificate(
    secret: Secret, now: datetime, most_bytes: int = 1 << 20
) -> Certificate | CertificateProblem:
    """The certificate of a ``kubernetes.io/tls`` Secret, checked as Envoy would check it.

    ``most_bytes``: of both parts together.  Envoy takes RSA keys of 2048 bits and more, and ECDSA
    on P-256, P-384 and P-521.
    """
    # Here, since without TLS nobody needs its 10 MB.
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )

    from akocore.translate.leaf import leaf_problem

    chain, key = _pem(secret, "tls.crt"), _pem(secret, "tls.key")
    if isinstance(chain, CertificateProblem):
        return chain
    if isinstance(key, CertificateProblem):
        return key

    def no(part: str, reason: str, remedy: str) -> CertificateProblem:
        return CertificateProblem(f"data[{part}]", reason, remedy)

    if (has := len(chain) + len(key)) > most_bytes:
        remedy = f"With its key it has {has} bytes, at most {most_bytes} may be. Send less of the"
        return no("tls.crt", "TooLarge", f"{remedy} chain.")
    try:
        certificates = x509.load_pem_x509_certificates(chain)
    except ValueError:
        return no("tls.crt", "InvalidCertificate", "It is not a PEM certificate. Replace it.")
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        return no("tls.key", "InvalidCertificate", "It is not a plain PEM private key. Replace it.")
    except Exception as err:  # an algorithm the library does not know
        return no("tls.key", "InvalidCertificate", f"{err}. Use an RSA or ECDSA key.")
    if len(certificates) != len(_BEGIN.findall(chain)):
        return no("tls.crt", "InvalidCertificate", "One of its blocks is cut off. Replace it.")
    leaf = certificates[0]
    public = private.public_key()
    try:
        same = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == (
            leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
        not_after = leaf.not_valid_after_utc
        problem = leaf_problem(leaf)
    except (ValueError, UnsupportedAlgorithm) as err:
        return no("tls.crt", "InvalidCertificate", f"{err}. Use an RSA or ECDSA certificate.")
    if not same:
        return no(
            "tls.key", "CertificateMismatch", "The key does not belong to tls.crt. Use its own."
        )
    if isinstance(public, rsa.RSAPublicKey):
        if public.key_size < 2048:
            return no("tls.key", "InvalidCertificate", "Use an RSA key of 2048 bits or more.")
        if public.key_size > 8192 or public.public_numbers().e.bit_length() > 33:
            remedy = "Use an RSA key of 8192 bits or fewer, with the exponent 65537."
            return no("tls.key", "InvalidCertificate", remedy)
    elif not (
        isinstance(public, ec.EllipticCurvePublicKey)
        and public.curve.name in ("secp256r1", "secp384r1", "secp521r1")
    ):
        return no("tls.key", "InvalidCertificate", "Use an RSA or an ECDSA P-256/384/521 key.")
    if problem:
        return no("tls.crt", "InvalidCertificate", problem)
    if not_after <= now:
        return no(
            "tls.crt",
            "CertificateExpired",
            f"It expired at {not_after:%Y-%m-%dT%H:%M:%SZ}. Renew it.",
        )
    # Written anew: Envoy reads PEM less kindly (no indent, no byte order mark, a block a line).
    return Certificate(
        b"".join(one.public_bytes(Encoding.PEM) for one in certificates),
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        not_after.timestamp(),
    )


@lru_cache(256)
def bundle(text: str) -> str:
    """PEM certificates of authorities, written anew; "": there is none, or not all can be read."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        return ""
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in found)
