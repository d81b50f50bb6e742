"""What of a server's own certificate Envoy (BoringSSL) refuses though it is good X.509.

Found out with Envoy 1.40: the kinds below are refused when the certificate is loaded.  This module
needs `cryptography`, so it is imported by who has a certificate.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["leaf_problem"]

_PSS_KEY: Final = "1.2.840.113549.1.1.10"
_EC_KEY: Final = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey, DER
_CURVES: Final = {
    "secp256r1": bytes.fromhex("06082a8648ce3d030107"),
    "secp384r1": bytes.fromhex("06052b81040022"),
    "secp521r1": bytes.fromhex("06052b81040023"),
}
_KEY_USAGE: Final = bytes.fromhex("0603551d0f")
_UNREADABLE: Final = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def leaf_problem(leaf: x509.Certificate) -> str:
    """What is wrong and what to do; "": nothing.  Raises `ValueError` for what can't be read."""
    if leaf.public_key_algorithm_oid.dotted_string == _PSS_KEY:
        return "Its key is for RSASSA-PSS alone. Have it issued for a key of type rsaEncryption."
    public = leaf.public_key()
    elliptic = isinstance(public, ec.EllipticCurvePublicKey)
    if isinstance(public, ec.EllipticCurvePublicKey):
        named = _CURVES.get(public.curve.name, b"")
        if named and _EC_KEY + named not in leaf.tbs_certificate_bytes:
            return "Its curve is written out. Have it issued for a key with a named curve."
    try:
        extensions: x509.Extensions | None = leaf.extensions
    except _UNREADABLE:
        extensions = None
    if extensions is None:
        if elliptic and _KEY_USAGE in leaf.tbs_certificate_bytes:
            return "One of its extensions can't be read. Have it issued anew."
    elif problem := _extension_problem(extensions, elliptic=elliptic):
        return problem
    return _name_problem(leaf, extensions)


def _extension_problem(extensions: x509.Extensions, *, elliptic: bool) -> str:
    for one in extensions:
        value = one.value
        if isinstance(value, x509.KeyUsage) and elliptic and not value.digital_signature:
            return "Its key usage has no digitalSignature, which TLS needs. Have it issued with it."
        if isinstance(value, x509.TLSFeature) and x509.TLSFeatureType.status_request in value:
            return (
                "It must be shown with an OCSP answer (must-staple), and engines have none."
                " Have it issued without."
            )
    return ""


def _name_problem(leaf: x509.Certificate, extensions: x509.Extensions | None) -> str:
    names = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if names and not names[0].value:
        return "Its subject has an empty common name. Have it issued with a name."
    if names:
        return ""
    alternative: list[x509.GeneralName] = []
    if extensions is not None:
        for one in extensions:
            if isinstance(one.value, x509.SubjectAlternativeName):
                alternative = list(one.value)
    kinds = (x509.DNSName, x509.UniformResourceIdentifier, x509.IPAddress)
    if any(isinstance(one, kinds) for one in alternative):
        return ""
    return "It has neither a common name nor a DNS name, address or URI. Have it issued with one."
