"""Who is given a certificate of a Service Engine: a real API server knows pods by their tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from akocore.engines.agent.identity import Identity
from akocore.engines.agent.messages import SIGN, CertificateRequest, decode_certified, encode
from akocore.engines.envoy.bootstrap import Tls
from akocore.engines.envoy.remote import TlsFiles
from akocore.kube.api import ApiServer
from akocore.kube.authority import AUDIENCE, CA_CONFIG_MAP, Authority
from akocore.kube.credentials import find_credentials
from akocore.kube.objects import ServiceEngineGroupSpec
from akocore.kube.signing import Signer, SigningServer
from akocore.kube.workloads import LABELS, Image, stateful_set
from akocore.pairs import write_pair
from cluster.control_plane import ControlPlane

pytestmark = pytest.mark.real

HOME = "akocore-system"
GROUP, SET, POD = "Default-Group", "default-group-se", "default-group-se-0"
SERVER = "akocore-xds.akocore-system.svc"
Manifest = dict[str, Any]


class Site:
    """What a controller and the other controllers of a true cluster have made, without kubelets."""

    def __init__(self, plane: ControlPlane, home: Path) -> None:
        self.plane = plane
        self.home = home
        self.said: list[tuple[str, str, str, str]] = []
        self.port = 0
        self.ahead = timedelta()

    def now(self) -> datetime:
        """As engines and controllers see it."""
        return datetime.now(UTC) + self.ahead

    def kubectl(self, *words: str, stdin: Manifest | None = None) -> str:
        text = json.dumps(stdin) if stdin is not None else ""
        return self.plane.kubectl("-n", HOME, *words, stdin=text)

    def make(self, obj: Manifest) -> Manifest:
        made: Manifest = json.loads(self.kubectl("create", "-o", "json", "-f", "-", stdin=obj))
        return made

    def engines(self, labels: bool = True, name: str = SET, group: str = GROUP) -> Manifest:
        """A StatefulSet as controllers make it."""
        image = Image("registry.example/se:1", "IfNotPresent", "xds:18000", "xds:18001")
        made = stateful_set(group, ServiceEngineGroupSpec(), 2, image)
        made["metadata"]["name"] = name
        if not labels:
            del made["metadata"]["labels"]
        return self.make(made)

    def pod(
        self, name: str = POD, owner: Manifest | None = None, account: str = "default"
    ) -> Manifest:
        owners = []
        if owner is not None:
            of = {key: owner[key] for key in ("apiVersion", "kind")}
            owners = [of | {k: owner["metadata"][k] for k in ("name", "uid")}]
            owners[0]["controller"] = True
        meta = {"name": name, "labels": LABELS, "ownerReferences": owners}
        spec = {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "containers": [{"name": "se", "image": "registry.example/se:1"}],
        }
        return self.make({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    def token(self, pod: str = POD, account: str = "default", audience: str = AUDIENCE) -> str:
        """What a kubelet asks for; pod "": bound to none; audience "": the API server's own."""
        words = ["create", "token", account]
        words += ["--bound-object-kind", "Pod", "--bound-object-name", pod] if pod else []
        words += ["--audience", audience] if audience else []
        return self.kubectl(*words).strip()

    def forge(self, token: str, **claims: Any) -> str:
        """The same token with other claims, signed as the API server signs."""
        head, body, _ = token.split(".")
        said = json.loads(base64.urlsafe_b64decode(f"{body}==")) | claims
        body = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
        key = load_pem_private_key((self.plane.home / "sa.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        signed = key.sign(f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{head}.{body}.{base64.urlsafe_b64encode(signed).decode().rstrip('=')}"

    def clear(self) -> None:
        kinds = "pods,statefulsets,secrets,configmaps"
        self.kubectl("delete", "--all", "--grace-period=0", "--force", kinds)

    async def ask(self, token: str, request: bytes) -> x509.Certificate:
        """Raises `grpc.aio.AioRpcError`."""
        credentials = grpc.ssl_channel_credentials((self.home / "own" / "ca.crt").read_bytes())
        options = [("grpc.ssl_target_name_override", SERVER)]
        place = f"127.0.0.1:{self.port}"
        async with grpc.aio.secure_channel(place, credentials, options) as channel:
            call: Any = channel.unary_unary(SIGN)
            asked = CertificateRequest(token=token, request=request.decode())
            answer = decode_certified(await call(encode(asked), timeout=20))
            return x509.load_pem_x509_certificate(answer.certificate.encode())

    async def refusal(self, token: str, request: bytes | None = None) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as found:
            await self.ask(token, request or csr())
        assert found.value.code() is grpc.StatusCode.PERMISSION_DENIED
        details = found.value.details() or ""
        assert not token or token not in details + str(self.said)
        return details

    def identity(self, token: str) -> Any:
        (self.home / "token").write_text(token)
        own = self.home / "identity"
        ca = self.home / "own" / "ca.crt"
        tls = Tls(certificate=own / "tls.crt", key=own / "tls.key", ca=ca, names=(SERVER,))
        place = ("127.0.0.1", self.port)
        return Identity(POD, tls, [place], self.home / "token", now=self.now, look_s=0.05)

    @property
    def files(self) -> Path:
        return self.home / "identity"


def csr(name: str = POD, key: Any = None, uri: str = "") -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if uri:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        made = made.add_extension(names, critical=False)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def uris(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(found)) == 1
    return found.get_values_for_type(x509.UniformResourceIdentifier)


def names(certificate: x509.Certificate) -> list[str | bytes]:
    return [one.value for one in certificate.subject]


@pytest.fixture
def bare(plane: ControlPlane, tmp_path: Path) -> Iterator[Site]:
    """The namespace with its accounts, as kube-controller-manager makes them."""
    plane.bind_controller()
    made = Site(plane, tmp_path)
    for account in ("default", "other"):
        meta = {"name": account}
        made.kubectl(
            "apply",
            "-f",
            "-",
            stdin={"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        )
    made.clear()
    yield made
    made.clear()


@pytest_asyncio.fixture
async def site(bare: Site) -> AsyncIterator[Site]:
    """With a controller's port that signs, by the controller's own rights."""
    async with ApiServer(lambda: find_credentials(bare.plane.controllers_kubeconfig)) as api:
        authority = Authority(api, HOME, bare.now)
        await authority.load()
        own = bare.home / "own"
        write_pair(own, authority.issue("akocore", [SERVER]), authority.ca)
        files = TlsFiles(own / "tls.crt", own / "tls.key", own / "ca.crt")
        signer = Signer(api, HOME, authority)
        server = SigningServer("127.0.0.1:0", files, signer, lambda *said: bare.said.append(said))
        bare.port = await server.start()
        yield bare
        await server.stop()


async def test_a_pod_of_ours_has_a_certificate_of_its_name_and_group(site: Site) -> None:
    site.pod(owner=site.engines())
    key = ec.generate_private_key(ec.SECP256R1())
    found = await site.ask(site.token(), csr(key=key))
    assert names(found) == [POD]
    assert uris(found) == [f"spiffe://akocore/se/{GROUP}/{POD}"]
    assert found.public_key() == key.public_key()
    ca = x509.load_pem_x509_certificate((site.home / "own" / "ca.crt").read_bytes())
    found.verify_directly_issued_by(ca)
    days = found.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=6) < days <= timedelta(days=7)


async def test_what_a_request_says_of_names_counts_for_nothing(site: Site) -> None:
    site.pod(owner=site.engines())
    other = csr("default-group-se-1", uri="spiffe://akocore/se/Other-Group/default-group-se-1")
    found = await site.ask(site.token(), other)
    assert (names(found), uris(found)) == ([POD], [f"spiffe://akocore/se/{GROUP}/{POD}"])


async def test_tokens_for_others_or_of_others_are_refused(site: Site) -> None:
    owner = site.engines()
    site.pod(owner=owner)
    site.pod("default-group-se-1", owner, account="other")
    for audience in ("", "somebody"):
        assert "not good for akocore-xds" in await site.refusal(site.token(audience=audience))
    for token in ("", "no-token-at-all", "none.of.ours", site.token()[:-4] + "AAAA"):
        assert "not good for akocore-xds" in await site.refusal(token)
    of_another = site.token("default-group-se-1", account="other")
    assert f"of system:serviceaccount:{HOME}:other" in await site.refusal(of_another)
    assert "not bound to a pod" in await site.refusal(site.token(pod=""))


async def test_a_pods_name_alone_is_no_proof(site: Site) -> None:
    """Of pods of the right account, with the right labels."""
    site.pod("bare-se-0")
    gone = site.engines(name="gone-se")
    site.kubectl("delete", "statefulset", "gone-se", "--wait=false")
    site.engines(name="gone-se")  # another one, of that name
    site.pod("gone-se-0", gone)
    site.pod("stranger-se-0", site.engines(labels=False, name="stranger-se", group="stranger"))
    site.pod("renamed-se-0", site.engines(name="renamed-se"))  # its group's would be another
    owner = site.engines()
    site.pod("another-0", owner)
    site.pod(f"{SET}-x", owner)
    for name in (
        "bare-se-0",
        "gone-se-0",
        "stranger-se-0",
        "renamed-se-0",
        "another-0",
        f"{SET}-x",
    ):
        why = await site.refusal(site.token(name))
        assert f"pod {name} is no Service Engine that akocore has made" in why


async def test_the_token_of_a_pod_that_is_gone_is_refused(site: Site) -> None:
    owner = site.engines()
    site.pod(owner=owner)
    token = site.token()
    await site.ask(token, csr())
    site.kubectl("delete", "pod", POD, "--grace-period=0", "--force")
    await _refused_in_time(site, token)
    site.pod(owner=owner)  # the next one of that name
    await _refused_in_time(site, token)
    await site.ask(site.token(), csr())


async def _refused_in_time(site: Site, token: str) -> None:
    """An API server keeps what it knows of a token for ten seconds."""
    async with asyncio.timeout(60):
        while await _code(site, token) is not grpc.StatusCode.PERMISSION_DENIED:
            await asyncio.sleep(0.2)


async def _code(site: Site, token: str) -> grpc.StatusCode:
    try:
        await site.ask(token, csr())
    except grpc.aio.AioRpcError as err:
        return err.code()
    return grpc.StatusCode.OK


async def test_a_token_whose_time_is_over_is_refused(site: Site) -> None:
    site.pod(owner=site.engines())
    token, now = site.token(), int(time.time())
    await site.ask(site.forge(token, jti="as-good"), csr())
    over = site.forge(token, iat=now - 7200, nbf=now - 7200, exp=now - 60)
    assert "not good for akocore-xds" in await site.refusal(over)


async def test_requests_that_prove_nothing_are_refused(site: Site) -> None:
    site.pod(owner=site.engines())
    token = site.token()
    weak = csr(key=rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert "none of curve P-256" in await site.refusal(token, weak)
    for text in (b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\n"):
        assert "can't be read" in await site.refusal(token, text or b" ")
    der = bytearray(x509.load_pem_x509_csr(csr()).public_bytes(Encoding.DER))
    at = der.index(POD.encode())
    der[at] ^= 1
    pem = base64.encodebytes(bytes(der)).decode()
    text = f"-----BEGIN CERTIFICATE REQUEST-----\n{pem}-----END CERTIFICATE REQUEST-----\n"
    assert "not signed with its key" in await site.refusal(token, text.encode())


async def test_strangers_fill_neither_events_nor_answers(site: Site) -> None:
    for _ in range(5):
        await site.refusal("no-token-at-all")
    assert len(site.said) == 1
    with pytest.raises(grpc.aio.AioRpcError):
        await site.ask("x" * 100_000, csr())


async def test_an_engine_keeps_its_key_and_renews_its_certificate(site: Site) -> None:
    site.pod(owner=site.engines())
    identity = site.identity(site.token())
    kept = asyncio.create_task(identity.run())
    try:
        async with asyncio.timeout(60):
            await identity.there()
        key, first = site.files / "tls.key", site.files / "tls.crt"
        for file in (key, first):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(site.files.stat().st_mode) == 0o700
        assert sorted(file.name for file in site.files.iterdir()) == ["tls.crt", "tls.key"]
        before = (key.read_bytes(), first.read_bytes())
        site.ahead = timedelta(days=4, hours=12)
        await asyncio.sleep(0.3)
        assert (key.read_bytes(), first.read_bytes()) == before
        site.ahead = timedelta(days=4, hours=17)
        async with asyncio.timeout(60):
            while first.read_bytes() == before[1]:
                await asyncio.sleep(0.02)
        assert key.read_bytes() == before[0]
        found = x509.load_pem_x509_certificate(first.read_bytes())
        assert uris(found) == [f"spiffe://akocore/se/{GROUP}/{POD}"]
    finally:
        kept.cancel()


async def test_an_engine_asks_until_a_controller_answers_and_says_why(site: Site) -> None:
    site.pod(owner=site.engines())
    right, site.port = site.port, 1
    identity = site.identity(site.token())
    heard: list[str] = []
    identity.on_change = lambda: heard.append(identity.why)
    kept = asyncio.create_task(identity.run())
    try:
        async with asyncio.timeout(60):
            while not heard:
                await asyncio.sleep(0.02)
        assert heard[0].startswith("127.0.0.1:1: ")
        assert not (site.files / "tls.crt").exists()
        identity._places = [("127.0.0.1", right)]
        async with asyncio.timeout(60):
            await identity.there()
            while identity.why:
                await asyncio.sleep(0.02)
        assert heard[-1] == ""
    finally:
        kept.cancel()


async def test_a_life_before_has_left_a_certificate_that_serves_without_controllers(
    site: Site,
) -> None:
    site.pod(owner=site.engines())
    first = site.identity(site.token())
    kept = asyncio.create_task(first.run())
    async with asyncio.timeout(60):
        await first.there()
    kept.cancel()
    site.port = 1
    site.ahead = timedelta(days=6)
    again = site.identity("x")
    kept = asyncio.create_task(again.run())
    async with asyncio.timeout(5):
        await again.there()
    kept.cancel()


def test_the_certificate_of_the_authority_is_no_secret() -> None:
    image = Image("i", "Always", "xds:18000", "xds:18001")
    made = stateful_set(GROUP, ServiceEngineGroupSpec(), 2, image)
    volumes = {v["name"]: v for v in made["spec"]["template"]["spec"]["volumes"]}
    assert volumes["ca"]["configMap"]["name"] == CA_CONFIG_MAP
    assert not any("secret" in volume for volume in volumes.values())
