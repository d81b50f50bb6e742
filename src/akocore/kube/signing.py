"""Signs certificates of Service Engines that are pods: who asks is known by its pod's token.

The token is for nothing else (its audience is ours) and bound to its pod: the API server says whose
it is, and that the pod is there.  What the certificate says is worked out from that pod and the
StatefulSet that it belongs to; of what the engine writes into its request only the public key
counts, and that it has the private one.  Every replica signs: the authority is in a Secret.

This is a port of its own.  Discovery's takes nobody without a certificate, and gRPC can't make an
exception of one method: it would not ask anybody for one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import msgspec
import orjson
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from akocore.engines.agent.messages import (
    SIGN,
    CertificateRequest,
    Certified,
    decode_request,
    encode,
)
from akocore.engines.envoy.process import EngineError
from akocore.engines.envoy.remote import Say, TlsFiles
from akocore.kube.api import ApiError, ApiServer
from akocore.kube.authority import AUDIENCE, Authority
from akocore.kube.workloads import ACCOUNT, LABELS, group_of

__all__ = ["Signer", "SigningServer"]

log = logging.getLogger(__name__)

_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_BOUND_TO = "authentication.kubernetes.io/pod-"
_TIMEOUT_S = 10.0
_AT_ONCE = 4  # questions to the API server
_SAY_AGAIN_S = 60.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    # Anybody may connect: neither for long, nor in any number, nor with much.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_age_grace_ms", 1_000),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_receive_message_length", 1 << 15),
    ("grpc.max_metadata_size", 1 << 13),
)
_CALLS = 64  # that wait for an answer; others are turned away


class _User(Struct):
    username: str = ""
    extra: dict[str, tuple[str, ...]] = {}


class _Status(Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    audiences: tuple[str, ...] = ()


class _Review(Struct):
    """``authentication.k8s.io/v1 TokenReview``, answered."""

    status: _Status


class Signer:
    """Answers requests of pods in ``namespace``."""

    def __init__(self, api: ApiServer, namespace: str, authority: Authority) -> None:
        self._api = api
        self._namespace = namespace
        self._authority = authority
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, asked: CertificateRequest) -> tuple[bytes, str]:
        """A certificate, or b"" and why there is none.  Raises `ApiError`, `TimeoutError`."""
        key, why = _public_key(asked.request)
        if key is None:
            return b"", why
        async with asyncio.timeout(_TIMEOUT_S), self._turns:
            name, uid, why = await self._pod(asked.token)
            if why:
                return b"", why
            group, why = await self._group(name, uid)
        if why:
            return b"", why
        log.info("event=engine_certified se=%s group=%s", name, group)
        return self._authority.sign(key, name, group), ""

    async def _pod(self, token: str) -> tuple[str, str, str]:
        """Name and uid of the pod that a token is bound to, or why it is none of ours."""
        not_good = f"its token is not good for {AUDIENCE}"
        if token.count(".") != 2:  # no JWT: nothing to ask about
            return "", "", not_good
        spec = {"token": token, "audiences": [AUDIENCE]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        raw = await self._api.request("POST", _REVIEWS, None, orjson.dumps(body))
        said = msgspec.json.decode(raw, type=_Review).status
        if not said.authenticated or AUDIENCE not in said.audiences:
            return "", "", not_good
        account = f"system:serviceaccount:{self._namespace}:{ACCOUNT}"
        if said.user.username != account:
            return "", "", f"its token is of {said.user.username}, not of {account}"
        bound = (said.user.extra.get(f"{_BOUND_TO}{what}", ()) for what in ("name", "uid"))
        match [*bound]:
            case [(str(name),), (str(uid),)] if name and uid:
                return name, uid, ""
        return "", "", "its token is not bound to a pod"

    async def _group(self, name: str, uid: str) -> tuple[str, str]:
        """The group whose engine a pod is, or why it is none."""
        none = f"pod {name} is no Service Engine that akocore has made"
        pod = await self._find("/api/v1", "pods", name, uid)
        if pod is None:
            return "", f"pod {name} is gone"
        owner = next(
            (one for one in pod["metadata"].get("ownerReferences", ()) if one.get("controller")),
            None,
        )
        if owner is None or (owner["apiVersion"], owner["kind"]) != ("apps/v1", "StatefulSet"):
            return "", none
        of = await self._find("/apis/apps/v1", "statefulsets", owner["name"], owner["uid"])
        if of is None or not LABELS.items() <= of["metadata"].get("labels", {}).items():
            return "", none
        number = name.removeprefix(f"{owner['name']}-")
        group = group_of(of)
        return (group, "") if group and number.isdecimal() else ("", none)

    async def _find(self, api: str, plural: str, name: str, uid: str) -> dict[str, Any] | None:
        """That very object; our role lets us list them."""
        path = f"{api}/namespaces/{self._namespace}/{plural}"
        raw = await self._api.request("GET", path, {"fieldSelector": f"metadata.name={name}"})
        items: list[dict[str, Any]] = orjson.loads(raw)["items"]
        return next((one for one in items if one["metadata"]["uid"] == uid), None)


def _public_key(request: str) -> tuple[ec.EllipticCurvePublicKey | None, str]:
    try:
        found = x509.load_pem_x509_csr(request.encode())
        key = found.public_key()
        whole = found.is_signature_valid
    except Exception:  # a stranger's bytes, and a parser's many ways to say no
        return None, "its certificate request can't be read"
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return None, "its key is none of curve P-256"
    return (key, "") if whole else (None, "its certificate request is not signed with its key")


class SigningServer:
    """The port of `Signer`, at ``listen`` ("host:port"), behind our certificate.

    ``files``: it has them to itself.
    """

    def __init__(self, listen: str, files: TlsFiles, signer: Signer, say: Say) -> None:
        self._listen = listen
        self._files = files
        self._signer = signer
        self._say = say
        self._told: dict[str, float] = {}  # why somebody was refused → when that was said
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """The port that it has.  Raises `EngineError`."""
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_CALLS)
        _, service, method = SIGN.split("/")
        handler: Any = grpc.unary_unary_rpc_method_handler(self._sign)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        try:
            port = server.add_secure_port(self._listen, self._files.credentials(of_clients=False))
        except RuntimeError as err:
            raise EngineError(
                f"{self._listen} can't be listened on. Give a free port to --certificates-listen."
            ) from err
        await server.start()
        self._server = server
        log.info("event=certificates_listens at=%s port=%d", self._listen, port)
        return port

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0.2)

    async def _sign(self, raw: bytes, context: Any) -> bytes:
        try:
            asked = decode_request(raw)
        except msgspec.MsgspecError:
            asked = CertificateRequest(token="", request="")
        try:
            certificate, why = await self._signer.answer(asked)
        except (ApiError, TimeoutError) as err:
            text = "the API server doesn't say whose its token is"
            log.warning("event=certificate_not_signed why=%r", str(err) or text)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{text}; it is asked again.")
        if why:
            self._refused(context.peer(), why)
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"no certificate was signed: {why}."
            )
        return encode(Certified(certificate=certificate.decode()))

    def _refused(self, peer: str, why: str) -> None:
        """Say it, but not for each time that somebody asks."""
        now = time.monotonic()
        self._told = {w: at for w, at in self._told.items() if now - at < _SAY_AGAIN_S}
        if why not in self._told and len(self._told) < _CALLS:
            self._told[why] = now
            host = peer.rpartition(":")[0]
            note = f"No certificate was signed for an engine at {host}: {why}."
            self._say("Config", "Warning", "IdentityRefused", note)
