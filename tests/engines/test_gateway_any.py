"""Whatever rules there are, Envoy takes them: hosts of random rules, all features together."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from akocore.engines.envoy.gateway import http_scope
from akocore.model_http import (
    Backend,
    BackendTls,
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
from engines.authority import Authority
from engines.gateway_rig import VS, Rig, need_envoy, rig

pytestmark = pytest.mark.real

_VALUES = ("", "a", "50%", "%REQ(x)%", "a b", "ü", '"q"', "a,b;c", "\\1", "$x", "x" * 300)
_PATHS = ("", "/a", "/a/b", "/a.b", "/%20", "/a+b", "/a*(b)", "/~x", "/" + "p" * 200)
_REGEX = ("/.*", "/[a-z]+(/x)?", "(?i)/a.*", "/a|/b", "/(?:x|y){3,5}")
_NAMES = ("x-a", "x-b", "cookie", "accept", "x_c", "content-type", "host", "authorization")


@pytest.fixture(scope="module", autouse=True)
def _envoy() -> None:
    need_envoy()


@pytest_asyncio.fixture
async def gw() -> AsyncIterator[Rig]:
    async with rig() as one:
        yield one


class Chance(random.Random):
    """Makes values as a translation may: valid by the API, but for the rest at will."""

    authorities = ""

    def some(self, share: float = 0.3) -> bool:
        return self.random() < share

    def path(self) -> TextMatch:
        kind = self.choice(("exact", "prefix", "prefix", "regex"))
        value = self.choice(_REGEX if kind == "regex" else _PATHS)
        return TextMatch(kind, value or ("/" if kind == "exact" else ""))

    def keys(self) -> tuple[KeyMatch, ...]:
        names = self.sample([n for n in _NAMES if n != "host"], self.randint(0, 3))
        return tuple(
            KeyMatch(name, TextMatch("regex", self.choice(_REGEX)))
            if self.some()
            else KeyMatch(name, TextMatch("exact", self.choice(_VALUES[1:])))
            for name in names
        )

    def edit(self) -> HeaderEdit:
        if self.some(0.5):
            return HeaderEdit()
        pairs = [(name, self.choice(_VALUES)) for name in self.sample(_NAMES, 3)]
        return HeaderEdit(tuple(pairs[:2]), tuple(pairs[2:]), tuple(self.sample(_NAMES, 1)))

    def backend(self) -> Backend:
        tls = None
        if self.some():
            tls = BackendTls(
                f"b{self.randint(0, 3)}.test",
                self.authorities,
                self.some(0.2),
                ((("dns", "x.test"), ("uri", "spiffe://x/y"))) if self.some() else (),
            )
        name = None if self.some(0.15) else f"default/s{self.randint(0, 9)}/80"
        protocol = self.choice(("http1", "h2c"))
        edits = (self.edit(), self.edit()) if self.some() else (HeaderEdit(), HeaderEdit())
        return Backend(name, self.choice((0, 1, 1, 7, 1_000_000)), protocol, tls, *edits)

    def rewrite(self) -> PathRewrite | None:
        if self.some(0.6):
            return None
        return PathRewrite(self.choice(("full", "prefix")), self.choice((*_PATHS[1:], "/", "/x/")))

    def rule(self, name: str) -> HttpRule:
        cors = Cors(
            self.choice((("*",), ("https://a.test", "http://*.b.test:8080"), ("http://*",))),
            self.choice(((), ("*",), ("GET", "PUT"))),
            self.choice(((), ("*",), ("x-a", "x-b"))),
            self.choice(((), ("*",), ("x-c",))),
            self.some(),
            self.randint(1, 9999),
        )
        redirect = Redirect(
            self.choice((301, 302, 303, 307, 308)),
            self.choice(("", "http", "https")),
            self.choice(("", "to.test")),
            self.choice((0, 80, 443, 8443)),
            self.rewrite(),
        )
        auth = ExternalAuth(
            self.backend(),
            self.some(0.5),
            self.choice(("", "/check", "/check/")),
            self.choice(((), ("X-A", "x-b"))),
            self.choice(((), ("X-User",))),
            self.choice((0, 1000)),
        )
        session = Session(self.choice(("cookie", "header")), "sid", self.choice((0.0, 90.0)))
        codes, backoff_s = self.choice(((), (500, 503))), self.choice((0.0, 0.0001, 120.0))
        retry = Retry(self.randint(1, 9), codes, backoff_s)
        return HttpRule(
            name,
            HttpMatch(
                self.path(), self.choice(("", "", "GET", "OPTIONS")), self.keys(), self.keys()
            ),
            tuple(self.backend() for _ in range(self.randint(0, 3))),
            answer=self.choice((0,) * 9 + (404, 500)),
            redirect=redirect if self.some(0.2) else None,
            request=self.edit(),
            response=self.edit(),
            rewrite_host="other.test" if self.some(0.2) else "",
            rewrite_path=self.rewrite(),
            mirrors=tuple(
                Mirror(self.backend(), self.randint(0, 7), 7) for _ in range(self.randint(0, 2))
            ),
            cors=cors if self.some() else None,
            auth=auth if self.some() else None,
            request_timeout_s=self.choice((0.0, 0.001, 10.5, 4000.0)),
            backend_timeout_s=self.choice((0.0, 0.001, 10.5)),
            retry=retry if self.some() else None,
            session=session if self.some() else None,
            grpc=self.some(0.2),
        )


@pytest.mark.parametrize("seed", range(3))
async def test_any_rules_are_taken_and_no_host_is_without_an_answer(
    gw: Rig, authority: Authority, seed: int
) -> None:
    chance = Chance(seed)
    chance.authorities = authority.ca.read_text()
    hosts = [f"h{n}.test" for n in range(60)] + ["*.w.test", "*.x.w.test", ""]
    await gw.listen(hosts=hosts)
    models = [
        HttpHost(host, tuple(chance.rule(f"{host}/{n}") for n in range(chance.randint(0, 5))))
        for host in hosts
    ]
    clusters = {
        one.name: one for model in models for rule in model.rules for one in gw.clusters(rule)
    }
    scopes = [
        http_scope(VS, 80, "http", model, tls=chance.some(), port_offset=chance.choice((0, 8000)))
        for model in models
    ]
    await gw.publish([*clusters.values(), *scopes])
    for host in (*hosts[:60], "a.w.test", "b.x.w.test", "other.test"):
        for path in ("/", "/a/b", "/a"):
            answer = await gw.ask(path, host=host, headers={"origin": "http://x.b.test:8080"})
            assert answer.status in (204, 301, 302, 303, 307, 308, 403, 404, 500, 503, 504), host


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))
