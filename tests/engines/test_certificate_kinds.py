"""Kinds of certificates: what `certificate` lets through is just what the real Envoy loads."""

from __future__ import annotations

import base64
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from akocore.engines.envoy.process import find_envoy
from akocore.kube.objects import ObjectMeta, Secret
from akocore.translate.tls import Certificate, certificate

KEY = ec.generate_private_key(ec.SECP256R1())
NOW = datetime.now(UTC)
NAMED = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.test")])
PART = x509.Name([x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "test")])
NOBODY = x509.Name([])
Pem = tuple[bytes, bytes]


def made(subject: x509.Name, *extensions: x509.ExtensionType) -> Pem:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(NAMED)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=9))
    )
    for one in extensions:
        builder = builder.add_extension(one, critical=False)
    chain = builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)
    return chain, KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def names(*found: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(found)


def raw(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


NULL = b"\x05\x00"  # of a type that none of these has
KINDS: dict[str, tuple[bool, Callable[[], Pem]]] = {
    "a common name": (True, lambda: made(NAMED)),
    "a DNS name alone": (True, lambda: made(NOBODY, names(x509.DNSName("a.test")))),
    "an address alone": (
        True,
        lambda: made(PART, names(x509.IPAddress(ipaddress.ip_address("10.0.0.1")))),
    ),
    "a URI alone": (True, lambda: made(PART, names(x509.UniformResourceIdentifier("spiffe://a")))),
    "no name": (False, lambda: made(NOBODY)),
    "neither common nor alternative name": (False, lambda: made(PART)),
    "a mail address alone": (False, lambda: made(PART, names(x509.RFC822Name("a@b.test")))),
    "no alternative name that can be read": (False, lambda: made(PART, raw("2.5.29.17", NULL))),
    "a key usage that can't be read": (False, lambda: made(NAMED, raw("2.5.29.15", NULL))),
    "an extension of no matter that can't be read": (
        True,
        lambda: made(NAMED, raw("2.5.29.35", NULL)),
    ),
    "must-staple": (
        False,
        lambda: made(NAMED, x509.TLSFeature([x509.TLSFeatureType.status_request])),
    ),
}
OPENSSL = {
    "an RSASSA-PSS key": (False, ("RSA-PSS", "rsa_keygen_bits:2048")),
    "explicit parameters of a curve": (
        False,
        ("EC", "ec_paramgen_curve:P-256", "ec_param_enc:explicit"),
    ),
    "a large exponent": (
        False,
        ("RSA", "rsa_keygen_bits:2048", "rsa_keygen_pubexp:36893488147419103233"),
    ),
    "a named curve": (True, ("EC", "ec_paramgen_curve:P-256")),
}


def loaded(chain: bytes, key: bytes, scratch: Path) -> bool:
    """Whether Envoy loads a certificate."""
    of = "type.googleapis.com/envoy.extensions"
    pair = {
        "certificate_chain": {"inline_bytes": base64.b64encode(chain).decode()},
        "private_key": {"inline_bytes": base64.b64encode(key).decode()},
    }
    tls = {
        "@type": f"{of}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [pair]},
    }
    proxy = {
        "@type": f"{of}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "a",
        "cluster": "a",
    }
    listener: dict[str, Any] = {
        "name": "a",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [
            {
                "filters": [{"name": "tcp", "typed_config": proxy}],
                "transport_socket": {"name": "tls", "typed_config": tls},
            }
        ],
    }
    resources = {"listeners": [listener], "clusters": [{"name": "a", "connect_timeout": "1s"}]}
    config = scratch / "envoy.json"
    config.write_text(json.dumps({"static_resources": resources}))
    command = [str(find_envoy().path), "--mode", "validate", "-c", str(config), "-l", "off"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check(pair: Pem, good: bool, scratch: Path) -> None:
    chain, key = pair
    text = {"tls.crt": chain.decode(), "tls.key": key.decode()}
    found = certificate(Secret(metadata=ObjectMeta(name="a"), string_data=text), NOW)
    assert isinstance(found, Certificate) is good, found
    if isinstance(found, Certificate):
        chain, key = found.chain, found.key
    else:
        assert (found.field, found.reason) in {
            ("data[tls.crt]", "InvalidCertificate"),
            ("data[tls.key]", "InvalidCertificate"),
        }
    assert loaded(chain, key, scratch) is good


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_certificate_is_refused_if_and_only_if_envoy_would(
    kind: str, tmp_path: Path
) -> None:
    good, make = KINDS[kind]
    check(make(), good, tmp_path)


@pytest.mark.parametrize("kind", OPENSSL)
def test_a_kind_of_key_is_refused_if_and_only_if_envoy_would(
    kind: str, tmp_path: Path, require_real: Callable[[bool, str], None]
) -> None:
    require_real(shutil.which("openssl") is not None, "openssl")
    good, (algorithm, *options) = OPENSSL[kind]
    path = tmp_path / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", algorithm, "-out", str(path)]
    for one in options:
        command += ["-pkeyopt", one]
    subprocess.run(command, check=True, capture_output=True)
    chain = subprocess.run(
        ["openssl", "req", "-x509", "-new", "-key", str(path), "-subj", "/CN=a.test"],
        check=True,
        capture_output=True,
    ).stdout
    check((chain, path.read_bytes()), good, tmp_path)
