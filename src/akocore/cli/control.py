"""Asking a running akocore, on the unix socket in its state directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["STATE", "StateOption", "ask", "parse_object"]

STATE = Path("/var/lib/akocore")
StateOption = Annotated[Path, typer.Option(help="state directory of the running akocore")]


def ask(state: Path, method: str, question: dict[str, Any]) -> Any:
    """The answer of the akocore whose state directory this is; ends the command without one."""
    import grpc
    import orjson

    with grpc.insecure_channel(f"unix:{(state / 'control.sock').absolute()}") as channel:
        call: Any = channel.unary_unary(f"/akocore.v1alpha1.Control/{method}")
        try:
            return orjson.loads(call(orjson.dumps(question), timeout=30))
        except grpc.RpcError as err:
            why = (
                f"no akocore answers in {state}: start `akocore serve`, or give its --state."
                if err.code() is grpc.StatusCode.UNAVAILABLE
                else f"it fails to answer ({err.details()})."
            )
            typer.echo(f"akocore: {why}", err=True)
            raise typer.Exit(1) from err


_KINDS = {
    **dict.fromkeys(("ingress", "ing"), "ingress"),
    **dict.fromkeys(("gateway", "gtw"), "gateway"),
    **dict.fromkeys(("service", "svc"), "service"),
    **{kind: kind for kind in ("httproute", "grpcroute", "tlsroute", "tcproute", "udproute")},
}


def parse_object(text: str) -> tuple[str, str]:
    """``ingress/NAME`` or ``ingress/NAMESPACE/NAME`` as kind and key; so of others."""
    kind, _, key = text.partition("/")
    known = _KINDS.get(kind.lower())
    if known is None or not key or key.count("/") > 1:
        typer.echo(
            f"akocore: {text}: write ingress/NAME or ingress/NAMESPACE/NAME;"
            " likewise gateway, service, httproute (grpcroute, tlsroute ...).",
            err=True,
        )
        raise typer.Exit(2)
    return known, key if "/" in key else f"default/{key}"
