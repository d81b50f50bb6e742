"""External authorization and gRPC, through a real Envoy to real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest
import pytest_asyncio
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from envoy.type.v3 import http_status_pb2

from akocore.model_http import (
    Backend,
    ExternalAuth,
    HeaderEdit,
    HttpMatch,
    KeyMatch,
    TextMatch,
)
from engines.gateway_rig import ADDRESS, OFFSET, Rig, need_envoy, rig, to

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


@pytest_asyncio.fixture
async def gw() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one


class GrpcServer:
    """A gRPC server with one handler for every method."""

    def __init__(self) -> None:
        self.port = 0
        self.calls: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Any = lambda _method, body: body
        self._server = grpc.aio.server()

    async def start(self) -> None:
        self._server.add_generic_rpc_handlers((self,))  # type: ignore[arg-type]
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    def service(self, details: Any) -> Any:
        metadata = {key: str(value) for key, value in details.invocation_metadata}

        async def unary(body: bytes, _context: Any) -> bytes:
            self.calls.append((details.method, metadata, body))
            return bytes(self.answer(details.method, body))

        return grpc.unary_unary_rpc_method_handler(unary)


@pytest_asyncio.fixture
async def servers(gw: Rig) -> AsyncIterator[Any]:
    made: list[GrpcServer] = []

    async def start(name: str) -> GrpcServer:
        one = GrpcServer()
        await one.start()
        made.append(one)
        gw.echoes[name] = one  # type: ignore[assignment]
        return one

    yield start


# ─── over HTTP


async def test_who_the_authorizer_refuses_gets_its_answer_and_no_backend(gw: Rig) -> None:
    await gw.listen()
    web, auth = await gw.echo("web"), await gw.echo("auth")
    asks = ExternalAuth(auth, grpc=False, path="/check")
    await gw.serve(to(web, path="/in", auth=asks), to(web))
    keeper = gw.echoes["auth"]
    keeper.extra = [("x-user", "ann"), ("x-why", "because")]
    told = {"authorization": "me", "x-secret": "1"}
    answer = await gw.ask("/in/a?b=c", method="POST", headers=told, body=b"hello")
    assert (answer.by, answer.seen["body"]) == ("web", "hello")
    asked = keeper.requests[0]
    assert (asked["path"], asked["method"]) == ("/check/in/a?b=c", "POST")
    assert (asked["host"], asked["body"]) == ("a.example.test", "")
    assert keeper.header("authorization") == ["me"]
    assert keeper.header("x-secret") == []
    assert keeper.header("content-length") == ["0"]
    assert gw.echoes["web"].header("x-user") == ["ann"]
    assert gw.echoes["web"].header("host") == ["a.example.test"]
    keeper.fail = [401]
    answer = await gw.ask("/in")
    assert answer.status == 401
    assert len(gw.echoes["web"].requests) == 1
    assert (await gw.ask("/")).by == "web"
    assert len(keeper.requests) == 2


async def test_headers_that_are_named_go_to_and_from_the_authorizer(gw: Rig) -> None:
    await gw.listen()
    web, auth = await gw.echo("web"), await gw.echo("auth")
    asks = ExternalAuth(
        auth, grpc=False, request_headers=("X-Token",), response_headers=("X-User",)
    )
    await gw.serve(to(web, auth=asks))
    gw.echoes["auth"].extra = [("x-user", "ann"), ("x-why", "because")]
    told = {"x-token": "t", "x-secret": "1", "x-user": "forged"}
    assert (await gw.ask(headers=told)).by == "web"
    assert gw.echoes["auth"].header("x-token") == ["t"]
    assert gw.echoes["auth"].header("x-secret") == []
    assert gw.echoes["web"].header("x-user") == ["ann"]
    assert gw.echoes["web"].header("x-why") == []


async def test_an_authorizer_sees_how_often_a_request_came_by_and_changes_nothing_of_it(
    gw: Rig,
) -> None:
    await gw.listen()
    web, auth = await gw.echo("web"), await gw.echo("auth")
    for named in ((), ("cdn-loop",)):
        await gw.serve(to(web, auth=ExternalAuth(auth, grpc=False, response_headers=named)))
        gw.echoes["auth"].extra = [("cdn-loop", "nobody")]
        assert (await gw.ask()).by == "web"
        (seen,) = gw.echoes["web"].header("cdn-loop")
        assert seen.startswith("akocore")
        assert gw.echoes["auth"].header("cdn-loop") == [seen]


async def test_a_body_is_shown_up_to_its_size(gw: Rig) -> None:
    await gw.listen()
    web, auth = await gw.echo("web"), await gw.echo("auth")
    await gw.serve(to(web, auth=ExternalAuth(auth, grpc=False, body_bytes=8)))
    answer = await gw.ask(method="POST", body=b"12345678")
    assert (answer.by, answer.seen["body"]) == ("web", "12345678")
    assert gw.echoes["auth"].requests[0]["body"] == "12345678"
    assert (await gw.ask(method="POST", body=b"123456789")).status == 413
    assert len(gw.echoes["web"].requests) == 1


async def test_a_body_larger_than_buffers_is_shown_and_sent_on(gw: Rig) -> None:
    web, auth = await gw.echo("web"), await gw.echo("auth")
    await gw.listen()
    await gw.serve(to(web, auth=ExternalAuth(auth, grpc=False, body_bytes=200_000)))
    body = b"b" * 150_000
    answer = await gw.ask(method="POST", body=body)
    assert (answer.by, len(answer.seen["body"])) == ("web", len(body))
    assert len(gw.echoes["auth"].requests[0]["body"]) == len(body)


@pytest.mark.parametrize("host", ["a.example.test", "*.example.test", ""])
@pytest.mark.parametrize("over_grpc", [False, True])
async def test_without_an_authorizer_nobody_comes_in(gw: Rig, host: str, over_grpc: bool) -> None:
    await gw.listen(hosts=[host])
    web = await gw.echo("web")
    for missing in (Backend(None), Backend("default/empty/80")):
        rule = to(web, path="/in", auth=ExternalAuth(missing, grpc=over_grpc))
        await gw.serve(rule, to(web), host=host)
        for name in ("a.example.test", "A.example.test"):
            assert (await gw.ask("/in", host=name)).status in (403, 500, 503)
            assert (await gw.ask("/", host=name)).by == "web"
    assert all(one["path"] == "/" for one in gw.echoes["web"].requests)


async def test_hosts_of_a_wildcard_have_authorizers_too(gw: Rig) -> None:
    await gw.listen(hosts=["*.example.test"])
    web, auth = await gw.echo("web"), await gw.echo("auth")
    rules = to(web, path="/in", auth=ExternalAuth(auth, grpc=False)), to(web)
    await gw.serve(*rules, host="*.example.test")
    gw.echoes["auth"].fail = [403]
    assert (await gw.ask("/in")).status == 403
    assert (await gw.ask("/in")).by == "web"
    assert (await gw.ask("/")).by == "web"
    assert len(gw.echoes["auth"].requests) == 2


# ─── over gRPC


async def test_an_authorizer_is_asked_over_grpc(gw: Rig, servers: Any) -> None:
    await gw.listen()
    web = await gw.echo("web")
    keeper: GrpcServer = await servers("keeper")

    def check(_method: str, body: bytes) -> bytes:
        request = external_auth_pb2.CheckRequest.FromString(body).attributes.request.http
        out = external_auth_pb2.CheckResponse()
        if request.headers.get("x-token") == "good":
            out.ok_response.headers.add(
                header=base_pb2.HeaderValue(key="x-user", value=f"ann of {request.host}")
            )
        else:
            out.status.code = 7
            out.denied_response.status.code = http_status_pb2.Unauthorized
        return out.SerializeToString()

    keeper.answer = check
    asks = ExternalAuth(Backend("default/keeper/80"), grpc=True, body_bytes=100)
    await gw.serve(to(web, auth=asks))
    told = {"x-token": "good"}
    assert (await gw.ask(method="POST", headers=told, body=b"hi")).by == "web"
    assert keeper.calls[0][0] == "/envoy.service.auth.v3.Authorization/Check"
    assert gw.echoes["web"].header("x-user") == ["ann of a.example.test"]
    shown = external_auth_pb2.CheckRequest.FromString(keeper.calls[0][2]).attributes.request.http
    assert (shown.raw_body, shown.method, shown.path) == (b"hi", "POST", "/")
    assert (await gw.ask()).status == 401
    assert len(gw.echoes["web"].requests) == 1


async def test_an_authorizer_over_grpc_leaves_lengths_and_hops_as_they_are(
    gw: Rig, servers: Any
) -> None:
    await gw.listen()
    web = await gw.echo("web")
    keeper: GrpcServer = await servers("keeper")

    def check(_method: str, _body: bytes) -> bytes:
        out = external_auth_pb2.CheckResponse()
        ok = out.ok_response
        ok.headers_to_remove.append("cdn-loop")
        for key, value in (("CDN-Loop", "nobody"), ("content-length", "2"), ("x-user", "ann")):
            ok.headers.add(header=base_pb2.HeaderValue(key=key, value=value))
        return out.SerializeToString()

    keeper.answer = check
    await gw.serve(to(web, auth=ExternalAuth(Backend("default/keeper/80"), grpc=True)))
    answer = await gw.ask(method="POST", body=b"hello")
    assert (answer.by, answer.seen["body"]) == ("web", "hello")
    assert gw.echoes["web"].header("x-user") == ["ann"]
    assert gw.echoes["web"].header("content-length") == ["5"]
    (hops,) = gw.echoes["web"].header("cdn-loop")
    assert hops.startswith("akocore")


# ─── gRPC itself


async def call(method: str, *, host: str = "a.example.test", **metadata: str) -> bytes:
    options = [("grpc.default_authority", host), ("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"{ADDRESS}:{80 + OFFSET}", options=options) as channel:
        return bytes(
            await channel.unary_unary(method)(b"hello", metadata=list(metadata.items()), timeout=10)
        )


async def status_of(method: str, **metadata: str) -> grpc.StatusCode:
    try:
        await call(method, **metadata)
    except grpc.aio.AioRpcError as err:
        return err.code()
    return grpc.StatusCode.OK


async def test_grpc_calls_are_routed_by_method_and_metadata(gw: Rig, servers: Any) -> None:
    await gw.listen()
    a, b = await servers("a"), await servers("b")
    to_a = Backend("default/a/80", protocol="h2c", request=HeaderEdit((("x-new", "1"),)))
    to_b = Backend("default/b/80", protocol="h2c")
    header = (KeyMatch("x-who", TextMatch("exact", "b")),)
    method = TextMatch("exact", "/shop.Cart/Add")
    await gw.serve(
        to(to_b, match=HttpMatch(method, headers=header), grpc=True),
        to(to_a, match=HttpMatch(method), grpc=True),
        to(Backend(None), path="/shop.Gone", grpc=True),
        to(Backend("default/empty/80", protocol="h2c"), path="/shop.Empty", grpc=True),
    )
    assert await call("/shop.Cart/Add") == b"hello"
    assert await call("/shop.Cart/Add", **{"x-who": "b"}) == b"hello"
    assert [len(one.calls) for one in (a, b)] == [1, 1]
    assert a.calls[0][1]["x-new"] == "1"
    assert await status_of("/shop.Gone/Do") == grpc.StatusCode.UNAVAILABLE
    assert await status_of("/shop.Empty/Do") == grpc.StatusCode.UNAVAILABLE
    assert await status_of("/shop.Cart/Remove") == grpc.StatusCode.UNIMPLEMENTED
    assert await status_of("/x/y", host="b.test") == grpc.StatusCode.UNIMPLEMENTED


async def test_a_plain_and_an_h2c_backend_of_one_port_are_two_clusters(
    gw: Rig, servers: Any
) -> None:
    await gw.listen()
    await servers("a")
    plain = Backend("default/a/80")
    await gw.serve(
        to(plain, path="/plain"), to(msgspec.structs.replace(plain, protocol="h2c"), grpc=True)
    )
    assert await call("/x.Y/Z") == b"hello"
    assert (await gw.ask("/plain")).status in (502, 503)
