"""Rules of Gateway API routes, through a real Envoy to real backends."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from akocore.engines.envoy.gateway import gateway_cluster, gateway_floor, http_scope
from akocore.model_http import (
    Backend,
    Cors,
    ExternalAuth,
    HeaderEdit,
    HttpHost,
    HttpMatch,
    HttpRule,
    KeyMatch,
    Mirror,
    PathRewrite,
    Redirect,
    Retry,
    Session,
    TextMatch,
)
from engines.gateway_rig import ADDRESS, OFFSET, VS, Answer, Rig, need_envoy, rig, to, until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


@pytest_asyncio.fixture
async def gw() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one


def exact(path: str) -> HttpMatch:
    return HttpMatch(TextMatch("exact", path))


def regex(path: str) -> HttpMatch:
    return HttpMatch(TextMatch("regex", path))


def key(name: str, value: str, kind: str = "exact") -> KeyMatch:
    return KeyMatch(name, TextMatch(kind, value))  # type: ignore[arg-type]


EVERYTHING = TextMatch("prefix", "")


# ─── hosts


async def test_a_host_is_found_by_its_name_however_it_is_spelt(gw: Rig) -> None:
    web = await gw.echo("web")
    await gw.listen()
    await gw.serve(to(web))
    for host in ("a.example.test", "A.Example.TEST", "a.example.test:80", "a.example.test."):
        answer = await gw.ask("/x?y=1", host=host)
        assert (answer.by, answer.seen["path"]) == ("web", "/x?y=1"), host
        assert answer.seen["host"] == host.rstrip(".")
    assert (await gw.ask(host="b.example.test")).status == 404


async def test_the_longest_wildcard_that_matches_serves(gw: Rig) -> None:
    names = {"*.example.test": "one", "*.b.example.test": "two", "x.example.test": "three"}
    await gw.listen(hosts=names)
    for host, name in names.items():
        await gw.serve(to(await gw.echo(name)), host=host)
    for host, by in {
        "a.example.test": "one",
        "a.c.d.example.test": "one",
        "b.example.test": "one",
        "a.b.example.test": "two",
        "A.x.B.example.test:80": "two",
        "x.example.test": "three",
        "y.x.example.test": "one",
        "example.test": "404",
        "other.test": "404",
        "test": "404",
    }.items():
        answer = await gw.ask(host=host)
        assert answer.by == by, host
        if answer.status == 200:
            assert answer.seen["host"] == host
    await gw.listen(hosts=[*names, ""])
    await gw.serve(to(await gw.echo("any")), host="")
    assert (await gw.ask(host="other.test")).by == "any"
    assert (await gw.ask(host="a.b.example.test")).by == "two"


async def test_a_wildcard_that_goes_leaves_its_hosts_to_the_next(gw: Rig) -> None:
    names = ["*.example.test", "*.b.example.test"]
    await gw.listen(hosts=names)
    for host in names:
        await gw.serve(HttpRule("r", HttpMatch(EVERYTHING), answer=200 + len(host)), host=host)
    assert (await gw.ask(host="a.b.example.test")).status == 200 + len(names[1])
    gone = http_scope(VS, 80, "http", HttpHost(names[1]))
    await gw.publish([gateway_floor(VS, 80, "http", names[:1])], [(gone.type_url, gone.name)])
    assert (await gw.ask(host="a.b.example.test")).status == 200 + len(names[0])


# ─── matches


async def test_paths_match_to_the_letter_by_element_and_by_expression(gw: Rig) -> None:
    await gw.listen()
    a, b, c, d = [await gw.echo(name) for name in "abcd"]
    await gw.serve(
        to(a, match=exact("/one")),
        to(b, path="/one"),
        to(c, match=regex(r"/two/\d+")),
        to(d),
    )
    for path, by in {
        "/one": "a",
        "/one?x": "a",
        "/one/": "b",
        "/one/two": "b",
        "/onetwo": "d",
        "/two/17": "c",
        "/two/17?x=1": "c",
        "/two/17/": "d",
        "/One": "d",
    }.items():
        assert (await gw.ask(path)).by == by, path


async def test_methods_headers_and_query_must_all_match(gw: Rig) -> None:
    await gw.listen()
    a, b, c, d = [await gw.echo(name) for name in "abcd"]
    await gw.serve(
        to(a, match=HttpMatch(EVERYTHING, "PUT", (key("x-a", "1"), key("x-b", "2|3", "regex")))),
        to(b, match=HttpMatch(EVERYTHING, query=(key("Q", "v w"), key("r", "[0-9]+", "regex")))),
        to(c, match=HttpMatch(EVERYTHING, "DELETE")),
        to(d),
    )
    both = {"X-A": "1", "x-b": "3"}
    assert (await gw.ask(method="PUT", headers=both)).by == "a"
    assert (await gw.ask(headers=both)).by == "d"
    assert (await gw.ask(method="PUT", headers={"x-a": "1"})).by == "d"
    assert (await gw.ask(method="PUT", headers={"x-a": "1", "x-b": "23"})).by == "d"
    assert (await gw.ask("/?Q=v%20w&r=12")).by == "b"
    assert (await gw.ask("/?q=v%20w&r=12")).by == "d"
    assert (await gw.ask("/?Q=v%20w&r=1x")).by == "d"
    assert (await gw.ask(method="DELETE")).by == "c"


async def test_who_matches_no_rule_gets_a_404(gw: Rig) -> None:
    await gw.listen()
    await gw.serve(to(await gw.echo("a"), path="/a"))
    assert (await gw.ask("/b")).status == 404


# ─── headers


async def test_headers_of_requests_and_answers_are_set_added_and_removed(gw: Rig) -> None:
    await gw.listen()
    web = await gw.echo("web")
    gw.echoes["web"].extra = [("x-old", "1"), ("x-keep", "2"), ("x-more", "3")]
    edit = HeaderEdit((("x-set", "50% off"),), (("x-more", "b"),), ("x-old",))
    await gw.serve(to(web, request=edit, response=edit))
    answer = await gw.ask(headers={"X-Set": "a", "x-old": "a", "x-more": "a", "x-keep": "a"})
    seen = gw.echoes["web"].header
    assert seen("x-set") == ["50% off"]
    assert seen("x-old") == []
    assert ",".join(seen("x-more")).replace(" ", "") == "a,b"
    assert seen("x-keep") == ["a"]
    got = answer.headers
    assert (got["x-set"], got["x-keep"], "x-old" in got) == ("50% off", "2", False)
    assert ",".join(got.getall("x-more")) == "3,b"  # type: ignore[attr-defined]


async def test_a_backends_edits_come_after_the_rules(gw: Rig) -> None:
    await gw.listen()
    own = HeaderEdit((("x-who", "backend"),))
    rule = HeaderEdit((("x-who", "rule"), ("x-rule", "1")))
    import msgspec

    web = msgspec.structs.replace(await gw.echo("web"), request=own, response=own)
    await gw.serve(to(web, request=rule, response=rule))
    answer = await gw.ask()
    assert gw.echoes["web"].header("x-who") == ["backend"]
    assert gw.echoes["web"].header("x-rule") == ["1"]
    assert (answer.headers["x-who"], answer.headers["x-rule"]) == ("backend", "1")


async def test_a_host_header_that_is_set_is_the_host(gw: Rig) -> None:
    await gw.listen()
    await gw.serve(to(await gw.echo("web"), request=HeaderEdit((("Host", "b.test"),))))
    assert (await gw.ask()).seen["host"] == "b.test"


# ─── redirects and rewrites


@pytest.mark.parametrize(
    ("redirect", "asked", "location"),
    [
        (Redirect(scheme="https"), "a.example.test:8080", "https://a.example.test/x/y?q=1"),
        (Redirect(), "a.example.test:8080", "http://a.example.test:8080/x/y?q=1"),
        (Redirect(host="b.test"), "a.example.test", "http://b.test:8080/x/y?q=1"),
        (Redirect(scheme="http"), "a.example.test:8080", "http://a.example.test/x/y?q=1"),
        (Redirect(port=80), "a.example.test:8080", "http://a.example.test/x/y?q=1"),
        (Redirect(port=443), "a.example.test", "http://a.example.test:443/x/y?q=1"),
        (Redirect(scheme="https", port=443), "a.example.test", "https://a.example.test/x/y?q=1"),
        (
            Redirect(scheme="https", host="b.test", port=8443),
            "a.example.test",
            "https://b.test:8443/x/y?q=1",
        ),
        (
            Redirect(port=80, path=PathRewrite("full", "/z")),
            "a.example.test",
            "http://a.example.test/z?q=1",
        ),
        (
            Redirect(port=80, path=PathRewrite("prefix", "/z/")),
            "a.example.test",
            "http://a.example.test/z/y?q=1",
        ),
        (
            Redirect(port=80, path=PathRewrite("prefix", "/")),
            "a.example.test",
            "http://a.example.test/y?q=1",
        ),
    ],
)
async def test_redirects(gw: Rig, redirect: Redirect, asked: str, location: str) -> None:
    await gw.listen(port=8080)
    for host in ("a.example.test", "*.example.test"):
        await gw.listen(port=8080, hosts=[host])
        await gw.serve(to(path="/x", redirect=redirect), host=host, port=8080)
        answer = await gw.ask("/x/y?q=1", host=asked, port=8080)
        assert answer.status == 302
        ports = {"http://": ":80", "https://": ":443"} if ":" in asked and host[0] == "*" else {}
        where = answer.headers["location"]
        for scheme, port in ports.items():
            if where.startswith(scheme):
                where = where.replace(f"{port}/", "/")
        assert where == location, host
        gone = http_scope(VS, 8080, "http", HttpHost(host))
        await gw.publish((), [(gone.type_url, gone.name)])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_has_its_status(gw: Rig, status: int) -> None:
    await gw.listen()
    await gw.serve(to(redirect=Redirect(status, host="b.test")))
    answer = await gw.ask("/p", host="a.example.test")
    assert (answer.status, answer.headers["location"]) == (status, "http://b.test/p")


async def test_a_redirect_to_the_own_port_of_a_listener_that_is_moved_counts_the_move(
    gw: Rig,
) -> None:
    await gw.listen()
    await gw.serve(to(redirect=Redirect(scheme="https")), port_offset=OFFSET)
    answer = await gw.ask("/p")
    assert answer.headers["location"] == f"https://a.example.test:{443 + OFFSET}/p"


@pytest.mark.parametrize(
    ("prefix", "value", "asked", "path"),
    [
        ("/foo", "/xyz", "/foo/bar?q=/foo", "/xyz/bar?q=/foo"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "", "/foo/bar", "/bar"),
        ("/foo", "", "/foo", "/"),
        ("/foo", "", "/foo/", "/"),
        ("/foo", "/", "/foo/bar?q", "/bar?q"),
        ("/foo", "/", "/foo", "/"),
        ("/foo", "/", "/foo/", "/"),
        ("", "/xyz", "/bar", "/xyz/bar"),
        ("", "/xyz", "/", "/xyz/"),
        ("", "/", "/bar", "/bar"),
        ("/a.b", "/", "/a.b/c", "/c"),
    ],
)
async def test_a_prefix_is_rewritten(
    gw: Rig, prefix: str, value: str, asked: str, path: str
) -> None:
    await gw.listen()
    web = await gw.echo("web")
    await gw.serve(to(web, path=prefix, rewrite_path=PathRewrite("prefix", value)))
    assert (await gw.ask(asked)).seen["path"] == path


async def test_a_path_and_a_host_are_rewritten_whole(gw: Rig) -> None:
    await gw.listen()
    web = await gw.echo("web")
    rewrite = PathRewrite("full", r"/new\1/%41")
    await gw.serve(to(web, path="/x", rewrite_path=rewrite, rewrite_host="b.test"))
    seen = (await gw.ask("/x/y?q=1")).seen
    assert (seen["host"], seen["path"]) == ("b.test", r"/new\1/%41?q=1")


# ─── shares


async def test_requests_are_shared_by_weight_and_a_missing_backend_fails_its_own(gw: Rig) -> None:
    await gw.listen()
    a, b, c = [await gw.echo(name) for name in "abc"]

    def weighted(backend: Backend, weight: int) -> Backend:
        return Backend(backend.backend, weight)

    await gw.serve(to(weighted(a, 60), weighted(b, 20), weighted(c, 0), Backend(None, 20)))
    by = Counter([(await gw.ask()).by for _ in range(600)])
    assert set(by) == {"a", "b", "500"}
    assert by["a"] > max(by["b"], by["500"])


async def test_a_rule_without_any_backend_is_a_500(gw: Rig) -> None:
    await gw.listen()
    none = Backend(None)
    zero = Backend("default/zero/80", 0)
    await gw.serve(to(path="/a"), to(none, path="/b"), to(zero, path="/c"), to(zero, none))
    assert [(await gw.ask(p)).status for p in ("/a", "/b", "/c", "/d")] == [500] * 4
    await gw.serve(to(none, grpc=True))
    assert (await gw.ask()).status == 503


async def test_a_backend_without_endpoints_is_a_503(gw: Rig) -> None:
    await gw.listen()
    await gw.serve(to(Backend("default/empty/80")))
    assert (await gw.ask()).status == 503


async def test_a_fixed_answer_goes_before_all_else(gw: Rig) -> None:
    await gw.listen()
    await gw.serve(to(await gw.echo("a"), answer=421, redirect=Redirect()))
    assert (await gw.ask()).status == 421


# ─── mirrors


async def test_copies_go_to_every_mirror_by_their_shares(gw: Rig) -> None:
    await gw.listen()
    a, b, c, d = [await gw.echo(name) for name in "abcd"]
    mirrors = (Mirror(b), Mirror(c, 1, 2), Mirror(d, 0), Mirror(Backend(None)))
    await gw.serve(to(a, mirrors=mirrors))
    for n in range(100):
        answer = await gw.ask(f"/{n}", method="POST", body=b"hello")
        assert answer.by == "a"
    await until(lambda: len(gw.echoes["b"].requests) == 100)
    assert {one["body"] for one in gw.echoes["b"].requests} == {"hello"}
    assert {one["host"] for one in gw.echoes["b"].requests} == {"a.example.test"}
    assert 0 < len(gw.echoes["c"].requests) < 100
    assert gw.echoes["d"].requests == []


async def test_a_mirror_that_fails_or_is_away_harms_no_answer(gw: Rig) -> None:
    await gw.listen()
    a, b = await gw.echo("a"), await gw.echo("b")
    gw.echoes["b"].fail = [500] * 10
    await gw.serve(to(a, mirrors=(Mirror(b), Mirror(Backend("default/empty/80")))))
    assert {(await gw.ask()).by for _ in range(10)} == {"a"}


# ─── CORS


def preflight(origin: str, method: str = "PUT", asked: str = "") -> dict[str, str]:
    out = {"origin": origin, "access-control-request-method": method}
    return out | ({"access-control-request-headers": asked} if asked else {})


def access(answer: Answer) -> dict[str, str]:
    lower = {name.lower(): value for name, value in answer.headers.items()}
    return {name: value for name, value in lower.items() if name.startswith("access-")}


async def test_cors_answers_preflights_and_marks_answers_of_allowed_origins(gw: Rig) -> None:
    await gw.listen()
    cors = Cors(
        ("https://www.foo.test", "http://*.bar.test", "http://baz.test:8080"),
        ("GET", "PUT"),
        ("x-one", "x-two"),
        ("x-seen",),
        credentials=True,
        max_age_s=17,
    )
    await gw.serve(to(await gw.echo("a"), cors=cors))
    for origin in (
        "https://www.foo.test",
        "https://www.foo.test:443",
        "http://a.bar.test",
        "http://a.b.bar.test:80",
        "http://baz.test:8080",
    ):
        answer = await gw.ask(method="OPTIONS", headers=preflight(origin))
        assert answer.status == 204
        assert access(answer) == {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, PUT",
            "access-control-allow-headers": "x-one, x-two",
            "access-control-expose-headers": "x-seen",
            "access-control-allow-credentials": "true",
            "access-control-max-age": "17",
        }
        answer = await gw.ask(headers={"origin": origin})
        assert answer.by == "a"
        assert access(answer) == {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": "x-seen",
            "access-control-allow-credentials": "true",
        }
        assert answer.headers["vary"] == "Origin"
    assert len(gw.echoes["a"].requests) == 5
    for origin in (
        "http://www.foo.test",
        "https://www.foo.test:8443",
        "http://bar.test",
        "http://a.bar.test.evil.test",
        "http://evil.test/.bar.test",
        "http://baz.test",
    ):
        for method, status in (("OPTIONS", 204), ("GET", 200)):
            answer = await gw.ask(method=method, headers=preflight(origin))
            assert answer.status == status
            assert access(answer) == {}, origin
    assert (await gw.ask(method="OPTIONS")).by == "a"  # that is no preflight


async def test_cors_wildcards_are_echoed_to_who_comes_with_credentials(gw: Rig) -> None:
    await gw.listen()
    every = Cors(("*",), ("*",), ("*",), ("*",))
    web = await gw.echo("a")
    await gw.serve(to(web, path="/open", cors=every), to(web, cors=Cors(
        ("*",), ("*",), ("*",), ("*", "x-a"), credentials=True
    )))  # fmt: skip
    asked = preflight("http://x.test", "PATCH", "x-a,x-b")
    got = (await gw.ask("/open", method="OPTIONS", headers=asked)).headers
    assert [got[f"access-control-allow-{k}"] for k in ("origin", "methods", "headers")] == ["*"] * 3
    assert "access-control-allow-credentials" not in got
    assert got["access-control-max-age"] == "5"
    assert (await gw.ask("/open", headers=asked)).headers["access-control-expose-headers"] == "*"
    got = (await gw.ask("/", method="OPTIONS", headers=asked)).headers
    assert [got[f"access-control-allow-{k}"] for k in ("origin", "methods", "headers")] == [
        "http://x.test",
        "PATCH",
        "x-a,x-b",
    ]
    got = (await gw.ask("/", method="OPTIONS", headers=preflight("http://x.test"))).headers
    assert "access-control-allow-headers" not in got
    got = (await gw.ask("/", headers=asked)).headers
    assert got["access-control-expose-headers"] == "x-a"


async def test_a_rule_of_one_method_answers_its_preflights_alone(gw: Rig) -> None:
    await gw.listen()
    a, b = await gw.echo("a"), await gw.echo("b")
    await gw.serve(to(a, match=HttpMatch(EVERYTHING, "PUT"), cors=Cors(("*",))), to(b))
    ask = preflight("http://x.test")
    assert (await gw.ask(method="OPTIONS", headers=ask)).status == 204
    ask = preflight("http://x.test", "PATCH")
    assert (await gw.ask(method="OPTIONS", headers=ask)).by == "b"


# ─── timeouts and retries


async def test_a_request_that_takes_too_long_is_a_504(gw: Rig) -> None:
    await gw.listen()
    web = await gw.echo("web")
    await gw.serve(
        to(web, path="/request", request_timeout_s=0.2),
        to(web, path="/backend", backend_timeout_s=0.2),
        to(web),
    )
    for path, status in {"/request": 504, "/backend": 504, "/": 200}.items():
        gw.echoes["web"].delay_s = [1.0]
        assert (await gw.ask(path)).status == status, path
    assert len(gw.echoes["web"].requests) == 3


async def test_what_failed_with_a_code_is_tried_again(gw: Rig) -> None:
    await gw.listen()
    web = await gw.echo("web")
    await gw.serve(
        to(web, path="/two", retry=Retry(2, (503, 500), 0.01)),
        to(web, path="/slow", retry=Retry(1), backend_timeout_s=0.3),
        to(web),
    )
    echo = gw.echoes["web"]
    echo.fail = [503, 500]
    assert (await gw.ask("/two")).by == "web"
    echo.fail = [503, 500, 503]
    assert (await gw.ask("/two")).status == 503
    echo.fail = [502]
    assert (await gw.ask("/two")).status == 502
    echo.fail = [503]
    assert (await gw.ask("/")).status == 503
    echo.delay_s = [1.5]
    assert (await gw.ask("/slow")).by == "web"
    assert len(echo.requests) == 3 + 3 + 1 + 1 + 2


async def test_all_tries_together_end_with_the_requests_timeout(gw: Rig) -> None:
    await gw.listen()
    web = await gw.echo("web")
    await gw.serve(to(web, retry=Retry(50, (503,), 0.1), request_timeout_s=0.5))
    gw.echoes["web"].fail = [503] * 100
    assert (await gw.ask()).status in (503, 504)
    assert len(gw.echoes["web"].requests) < 50


# ─── upgrades


async def test_web_sockets_go_through(gw: Rig) -> None:
    async def echo(request: web.BaseRequest) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    runner = web.ServerRunner(web.Server(echo))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    backend = Backend("default/socket/80")
    await gw.publish([gateway_cluster(backend, [("127.0.0.1", port)])])
    await gw.listen()
    scope = http_scope(VS, 80, "http", HttpHost("a.example.test", (to(backend),)))
    await gw.publish([scope])
    url = f"http://{ADDRESS}:{80 + OFFSET}/chat"
    async with gw.client.ws_connect(url, headers={"Host": "a.example.test"}) as socket:
        await socket.send_str("hello")
        assert await socket.receive_str(timeout=5) == "hello"
    await runner.cleanup()


# ─── sessions


@pytest.mark.parametrize("shared", [False, True])
async def test_a_cookie_keeps_a_session_at_its_endpoint(gw: Rig, shared: bool) -> None:
    await gw.listen()
    for name in ("a.1", "a.2", "a.3", "b.1", "b.2"):
        await gw.echo(name)
    a, b = Backend("default/a/80"), Backend("default/b/80")
    backends = (a, b) if shared else (a,)
    await gw.serve(to(*backends, session=Session("cookie", "sid", 60)), to())
    seen = set()
    for _ in range(12):
        answer = await gw.ask()
        cookies = [
            value.split(";")[0]
            for value in answer.headers.getall("set-cookie")  # type: ignore[attr-defined]
        ]
        assert any(one.startswith("sid=") for one in cookies)
        assert all("Max-Age=60" in v for k, v in answer.headers.items() if k == "set-cookie")
        seen.add(answer.by)
        again = {(await gw.ask(headers={"cookie": "; ".join(cookies)})).by for _ in range(8)}
        assert again == {answer.by}
    assert len(seen) > 1


async def test_a_header_keeps_a_session_at_its_endpoint(gw: Rig) -> None:
    await gw.listen()
    for name in ("a.1", "a.2", "a.3"):
        await gw.echo(name)
    await gw.serve(to(Backend("default/a/80"), session=Session("header", "x-session")))
    seen = set()
    for _ in range(8):
        answer = await gw.ask()
        seen.add(answer.by)
        told = {"x-session": answer.headers["x-session"]}
        assert {(await gw.ask(headers=told)).by for _ in range(6)} == {answer.by}
    assert len(seen) > 1


async def test_sessions_are_kept_on_hosts_of_a_wildcard(gw: Rig) -> None:
    await gw.listen(hosts=["*.example.test"])
    for name in ("a.1", "a.2", "a.3"):
        await gw.echo(name)
    rule = to(Backend("default/a/80"), session=Session("header", "x-session"))
    await gw.serve(rule, host="*.example.test")
    answer = await gw.ask()
    told = {"x-session": answer.headers["x-session"]}
    assert {(await gw.ask(headers=told)).by for _ in range(9)} == {answer.by}


# ─── changes


async def test_no_answer_is_lost_while_backends_and_filters_come_and_go(gw: Rig) -> None:
    await gw.listen()
    a, b, c, keeper = [await gw.echo(name) for name in ("a", "b", "c", "keeper")]
    turns = [
        to(a),
        to(Backend(b.backend, 1), Backend(c.backend, 1)),
        to(a, request=HeaderEdit((("x-a", "1"),)), session=Session("cookie", "sid")),
        to(b, cors=Cors(("*",)), retry=Retry(2, (503,))),
        to(a, auth=ExternalAuth(keeper, grpc=False), request_timeout_s=9),
        to(c, mirrors=(Mirror(a),), rewrite_path=PathRewrite("prefix", "/z")),
    ]
    await gw.serve(turns[0])
    answers: Counter[str] = Counter()
    done = False

    async def client() -> None:
        while not done:
            answers[(await gw.ask()).by] += 1

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for n in range(25):
        await gw.serve(turns[n % len(turns)])
        await asyncio.sleep(0.2)
    done = True
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*clients)
    assert set(answers) == {"a", "b", "c"}
