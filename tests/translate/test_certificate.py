"""A Secret is a certificate that Envoy will take, or a problem that says what to do."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from akocore.kube.objects import ObjectMeta, Secret
from akocore.translate.tls import Certificate, CertificateProblem, certificate

NOW = datetime(2026, 6, 1, tzinfo=UTC)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())


def pem_key(
    key: Key,
    encryption: KeySerializationEncryption | None = None,
    form: PrivateFormat = PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())


def pem_cert(
    key: Key,
    until: datetime = NOW + timedelta(days=90),
    extension: x509.ExtensionType | None = None,
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.test")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(until)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def encoded(**parts: bytes) -> dict[str, str]:
    """Secret data of ``crt`` and ``key``."""
    return {f"tls.{name}": base64.b64encode(pem).decode() for name, pem in parts.items()}


def of(
    data: Mapping[str, str] | None = None, text: Mapping[str, str] | None = None
) -> Certificate | CertificateProblem:
    secret = Secret(
        metadata=ObjectMeta(name="cert", namespace="shop"),
        type="kubernetes.io/tls",
        data=dict(data) if data is not None else None,
        string_data=dict(text) if text is not None else None,
    )
    return certificate(secret, NOW)


def good(found: Certificate | CertificateProblem) -> Certificate:
    assert isinstance(found, Certificate), found
    return found


def problem(found: Certificate | CertificateProblem) -> tuple[str, str, str]:
    assert isinstance(found, CertificateProblem)
    return found.field, found.reason, found.remedy


@pytest.mark.parametrize(
    "key",
    [
        RSA,
        P256,
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=["rsa-2048", "p-256", "p-384", "p-521"],
)
def test_keys_that_envoy_takes_are_good(key: Key) -> None:
    crt = pem_cert(key)
    found = good(of(encoded(crt=crt, key=pem_key(key))))
    assert found.chain == crt
    assert found.key == pem_key(key)
    assert found.not_after == (NOW + timedelta(days=90)).timestamp()


@pytest.mark.parametrize("key", [RSA, P256], ids=["rsa", "ecdsa"])
def test_a_key_in_its_traditional_form_is_written_anew(key: Key) -> None:
    old = pem_key(key, form=PrivateFormat.TraditionalOpenSSL)
    assert good(of(encoded(crt=pem_cert(key), key=old))).key == pem_key(key)


def test_a_chain_is_kept_whole_and_in_order() -> None:
    leaf, parent = pem_cert(RSA), pem_cert(OTHER_RSA)
    found = good(of(encoded(crt=leaf + parent, key=pem_key(RSA))))
    assert found.chain == leaf + parent
    assert found.not_after == (NOW + timedelta(days=90)).timestamp()


def test_text_around_the_blocks_is_dropped() -> None:
    crt = pem_cert(RSA)
    around = b"subject=/CN=a.test\r\n" + crt.replace(b"\n", b"\r\n") + b"\n\nthe end\n"
    assert good(of(encoded(crt=around, key=pem_key(RSA)))).chain == crt


def test_string_data_goes_before_data() -> None:
    crt, key = pem_cert(RSA), pem_key(RSA)
    stale = encoded(crt=pem_cert(P256), key=pem_key(P256))
    assert good(of(stale, {"tls.crt": crt.decode(), "tls.key": key.decode()})).chain == crt


def test_string_data_of_one_part_leaves_data_of_the_other() -> None:
    crt, key = pem_cert(RSA), pem_key(RSA)
    assert good(of(encoded(crt=crt), {"tls.key": key.decode()})).key == key


def test_base64_may_have_line_ends_as_the_api_server_allows() -> None:
    crt = pem_cert(RSA)
    broken = base64.encodebytes(crt).decode()
    data = encoded(key=pem_key(RSA)) | {"tls.crt": broken.replace("\n", "\r\n") + "\n"}
    assert good(of(data)).chain == crt


@pytest.mark.parametrize(
    "data, field, remedy",
    [
        (None, "data[tls.crt]", "Secret has no tls.crt. Add tls.crt and tls.key."),
        ({}, "data[tls.crt]", "Secret has no tls.crt. Add tls.crt and tls.key."),
        (
            encoded(key=pem_key(RSA)),
            "data[tls.crt]",
            "Secret has no tls.crt. Add tls.crt and tls.key.",
        ),
        (
            encoded(crt=pem_cert(RSA)),
            "data[tls.key]",
            "Secret has no tls.key. Add tls.crt and tls.key.",
        ),
        (
            encoded(crt=pem_cert(RSA)) | {"tls.key": ""},
            "data[tls.key]",
            "Secret has no tls.key. Add tls.crt and tls.key.",
        ),
    ],
    ids=["no-data", "empty", "no-certificate", "no-key", "empty-key"],
)
def test_a_missing_part_is_named(data: dict[str, str] | None, field: str, remedy: str) -> None:
    assert problem(of(data)) == (field, "InvalidCertificate", remedy)


@pytest.mark.parametrize("part", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("text", ["-----BEGIN", "YQ", "a b", "ü", "\ud800"], ids=ascii)
def test_what_is_not_base64_is_said(part: str, text: str) -> None:
    data = encoded(crt=pem_cert(RSA), key=pem_key(RSA)) | {part: text}
    assert problem(of(data)) == (
        f"data[{part}]",
        "InvalidCertificate",
        "It is not base64. Encode the PEM text.",
    )


@pytest.mark.parametrize("text", ["", "nonsense", "\ud800"], ids=ascii)
def test_string_data_that_is_no_pem_is_said(text: str) -> None:
    field, reason, _ = problem(of(encoded(key=pem_key(RSA)), {"tls.crt": text}))
    assert (field, reason) == ("data[tls.crt]", "InvalidCertificate")


@pytest.mark.parametrize(
    "crt",
    [
        b"nonsense",
        b"\x00\xff",
        pem_key(RSA),
        b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n",
    ],
    ids=["text", "bytes", "a-key", "no-der"],
)
def test_a_certificate_that_is_not_pem_is_said(crt: bytes) -> None:
    assert problem(of(encoded(crt=crt, key=pem_key(RSA)))) == (
        "data[tls.crt]",
        "InvalidCertificate",
        "It is not a PEM certificate. Replace it.",
    )


@pytest.mark.parametrize(
    "key",
    [
        b"nonsense",
        pem_cert(RSA),
        pem_key(RSA)[:400],
        pem_key(RSA, BestAvailableEncryption(b"secret")),
        pem_key(RSA, BestAvailableEncryption(b"secret"), PrivateFormat.TraditionalOpenSSL),
    ],
    ids=["text", "a-certificate", "cut-off", "encrypted", "encrypted-of-old"],
)
def test_a_key_that_is_not_plain_pem_is_said(key: bytes) -> None:
    assert problem(of(encoded(crt=pem_cert(RSA), key=key))) == (
        "data[tls.key]",
        "InvalidCertificate",
        "It is not a plain PEM private key. Replace it.",
    )


def test_a_chain_with_a_block_cut_off_is_said() -> None:
    field, reason, _ = problem(
        of(encoded(crt=pem_cert(RSA) + pem_cert(OTHER_RSA)[:300], key=pem_key(RSA)))
    )
    assert (field, reason) == ("data[tls.crt]", "InvalidCertificate")


@pytest.mark.parametrize("key", [OTHER_RSA, P256], ids=["another-rsa", "another-algorithm"])
def test_a_key_of_another_certificate_is_said(key: Key) -> None:
    assert problem(of(encoded(crt=pem_cert(RSA), key=pem_key(key)))) == (
        "data[tls.key]",
        "CertificateMismatch",
        "The key does not belong to tls.crt. Use its own.",
    )


def test_a_chain_with_its_parent_first_is_a_mismatch() -> None:
    crt = pem_cert(OTHER_RSA) + pem_cert(RSA)
    assert problem(of(encoded(crt=crt, key=pem_key(RSA))))[1] == "CertificateMismatch"


@pytest.mark.parametrize(
    "left, expired",
    [(timedelta(seconds=1), False), (timedelta(0), True), (timedelta(days=-1), True)],
    ids=["a-second-left", "now", "yesterday"],
)
def test_an_expired_certificate_is_refused(left: timedelta, expired: bool) -> None:
    found = of(encoded(crt=pem_cert(RSA, NOW + left), key=pem_key(RSA)))
    assert isinstance(found, CertificateProblem) == expired


def test_an_expired_certificate_says_since_when() -> None:
    crt = pem_cert(RSA, datetime(2026, 5, 31, 12, 30, tzinfo=UTC))
    assert problem(of(encoded(crt=crt, key=pem_key(RSA)))) == (
        "data[tls.crt]",
        "CertificateExpired",
        "It expired at 2026-05-31T12:30:00Z. Renew it.",
    )


def test_a_short_rsa_key_is_refused() -> None:
    short = rsa.generate_private_key(65537, 1024)
    assert problem(of(encoded(crt=pem_cert(short), key=pem_key(short)))) == (
        "data[tls.key]",
        "InvalidCertificate",
        "Use an RSA key of 2048 bits or more.",
    )


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256K1()), ed25519.Ed25519PrivateKey.generate()],
    ids=["secp256k1", "ed25519"],
)
def test_a_key_that_envoy_does_not_take_is_refused(key: Key) -> None:
    assert problem(of(encoded(crt=pem_cert(key), key=pem_key(key)))) == (
        "data[tls.key]",
        "InvalidCertificate",
        "Use an RSA or an ECDSA P-256/384/521 key.",
    )


def _usage(*, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def test_an_ecdsa_certificate_that_may_not_sign_is_refused() -> None:
    crt = pem_cert(P256, extension=_usage(digital_signature=False))
    field, reason, remedy = problem(of(encoded(crt=crt, key=pem_key(P256))))
    assert (field, reason) == ("data[tls.crt]", "InvalidCertificate")
    assert "digitalSignature" in remedy


def test_an_ecdsa_certificate_that_may_sign_is_good() -> None:
    crt = pem_cert(P256, extension=_usage(digital_signature=True))
    good(of(encoded(crt=crt, key=pem_key(P256))))


def test_a_good_certificates_key_is_readable_as_what_went_in() -> None:
    found = good(of(encoded(crt=pem_cert(P256), key=pem_key(P256))))
    key = load_pem_private_key(found.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.private_numbers() == P256.private_numbers()


def test_no_problem_repeats_the_key() -> None:
    secret = pem_key(OTHER_RSA).decode()
    found = of(encoded(crt=pem_cert(RSA), key=secret.encode()))
    assert not any(line in str(found) for line in secret.splitlines() if len(line) > 40)
