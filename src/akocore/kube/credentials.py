"""Where the API server is and who we are to it, as the ``kubernetes`` package finds out.

Kubeconfig files, in-cluster accounts, exec plugins and token refresh are that package's work.  It
costs 36 MB and half a second to import, so it does it in a short-lived child process
(``python -m akocore.kube.credentials [KUBECONFIG]``) that prints the result as JSON.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

__all__ = ["Credentials", "CredentialsError", "find_credentials"]


class CredentialsError(Exception):
    """There is no way to an API server; the text says why and what to do."""


class Credentials(Struct, frozen=True, kw_only=True):
    """PEM texts, not files.  ``authorization``: the header's value, "" for none."""

    server: str
    ca: str = ""
    certificate: str = ""
    key: str = ""
    authorization: str = ""
    verify: bool = True
    server_name: str = ""

    def ssl_context(self) -> ssl.SSLContext:
        """As the server's certificate and our own want it."""
        context = ssl.create_default_context(cadata=self.ca or None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate:
            with tempfile.NamedTemporaryFile(mode="w", suffix=".pem") as pair:
                pair.write(f"{self.certificate}\n{self.key}\n")
                pair.flush()
                context.load_cert_chain(pair.name)
        return context


async def find_credentials(kubeconfig: Path | None) -> Credentials:
    """Those of ``kubeconfig``, else of $KUBECONFIG or ~/.kube/config, else of the pod we are.

    Raises `CredentialsError`.
    """
    command = [sys.executable, "-m", "akocore.kube.credentials"]
    command += [str(kubeconfig)] if kubeconfig else []
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await child.communicate()
    if child.returncode:
        said = err.decode("utf-8", "replace").strip().splitlines()
        raise CredentialsError(
            f"no way to an API server: {said[-1] if said else 'unknown reason'}."
            " Give a file to --kubeconfig, or run in a pod with a service account."
        )
    return msgspec.json.decode(out, type=Credentials)


def _main(kubeconfig: str | None) -> Credentials:
    from typing import Any

    import kubernetes

    config: Any = kubernetes.config
    found = kubernetes.client.Configuration()
    if kubeconfig is not None:
        config.load_kube_config(config_file=kubeconfig, client_configuration=found)
    else:
        try:
            config.load_kube_config(client_configuration=found)
        except config.ConfigException:
            config.load_incluster_config(client_configuration=found)

    def text(file: str | None) -> str:
        return Path(file).read_text() if file else ""

    return Credentials(
        server=found.host,
        ca=text(found.ssl_ca_cert),
        certificate=text(found.cert_file),
        key=text(found.key_file),
        authorization=found.get_api_key_with_prefix("BearerToken", alias="authorization") or "",
        verify=bool(found.verify_ssl),
        server_name=getattr(found, "tls_server_name", None) or "",
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_main(sys.argv[1] if sys.argv[1:] else None)))
