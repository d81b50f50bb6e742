"""The options by which ``serve`` and ``controller`` answer Service Engines elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from akocore.engines.envoy.remote import TlsFiles

__all__ = [
    "CERTIFICATES_LISTEN",
    "XDS_LISTEN",
    "CertificatesListen",
    "CertificatesService",
    "EnginesAre",
    "EnginesWhere",
    "XdsCa",
    "XdsCert",
    "XdsKey",
    "XdsListen",
    "tls_files",
]

XDS_LISTEN = "0.0.0.0:18000"
CERTIFICATES_LISTEN = "0.0.0.0:18001"


class EnginesWhere(StrEnum):
    """Where Service Engines run."""

    LOCAL = "local"
    EXTERNAL = "external"


EnginesAre = Annotated[
    EnginesWhere,
    typer.Option(
        help="local: Envoy processes on this machine; external: they come over mutual TLS"
    ),
]
XdsListen = Annotated[str, typer.Option(help="for external engines")]
CertificatesListen = Annotated[
    str, typer.Option(help="with --se-image: where pods have their certificates signed")
]
CertificatesService = Annotated[
    str, typer.Option(help="with --se-image: HOST:PORT at which pods find that")
]
XdsCert = Annotated[
    Path | None, typer.Option(help="our certificate, PEM; followed when it is replaced")
]
XdsKey = Annotated[Path | None, typer.Option(help="its key, PEM")]
XdsCa = Annotated[Path | None, typer.Option(help="who signs the engines' certificates, PEM")]


def tls_files(
    engines: EnginesWhere, cert: Path | None, key: Path | None, ca: Path | None
) -> TlsFiles | None:
    """The certificate for engines elsewhere; None: there are none.

    Raises `EngineError` when options don't fit together, or name what can't be read.
    """
    from akocore.engines.envoy.process import EngineError

    if engines is EnginesWhere.LOCAL:
        if cert or key or ca:
            raise EngineError("--xds-cert, --xds-key, --xds-client-ca are for --engines external.")
        return None
    if cert is None or key is None or ca is None:
        raise EngineError("--engines external needs --xds-cert, --xds-key and --xds-client-ca.")
    from akocore.engines.envoy.remote import TlsFiles

    return TlsFiles(cert, key, ca)
