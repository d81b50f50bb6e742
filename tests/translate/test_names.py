"""Names as AKO forms them: the strings that its own tests and users' screens show."""

from __future__ import annotations

import hashlib

import pytest

from akocore.translate.names import Names

SNI = Names("cluster")
EVH = Names("cluster", evh=True)


@pytest.mark.parametrize(
    "setting, shard, name",
    [
        ("", 0, "cluster--Shared-L7-0"),
        ("", 7, "cluster--Shared-L7-7"),
        ("my-infra", 3, "cluster--Shared-L7-my-infra-3"),
        ("critical.infra", 4, "cluster--Shared-L7-critical.infra-4"),
    ],
    ids=["first", "last", "with-a-setting", "dots-of-a-setting-stay"],
)
def test_a_shared_parent_is_named_after_setting_and_shard(
    setting: str, shard: int, name: str
) -> None:
    assert SNI.shared(setting, shard) == name


@pytest.mark.parametrize(
    "setting, name",
    [("", "cluster--foo.com-L7-dedicated"), ("my-infra", "cluster--my-infra-foo.com-L7-dedicated")],
    ids=["defaults", "with-a-setting"],
)
def test_a_dedicated_service_is_named_after_its_host(setting: str, name: str) -> None:
    assert SNI.dedicated(setting, "foo.com") == name


@pytest.mark.parametrize(
    "setting, name",
    [("", "cluster--foo.com"), ("my-infra", "cluster--my-infra-foo.com")],
    ids=["defaults", "with-a-setting"],
)
def test_an_sni_child_is_named_after_its_host(setting: str, name: str) -> None:
    assert SNI.child(setting, "foo.com") == name


@pytest.mark.parametrize(
    "setting, path, name",
    [
        ("", "/foo", "cluster--bar.com_foo-default-ing"),
        ("", "/foo/bar", "cluster--bar.com_foo_bar-default-ing"),
        ("", "", "cluster--bar.com-default-ing"),
        ("my-infra", "/foo", "cluster--my-infra-bar.com_foo-default-ing"),
    ],
    ids=["one-step", "two-steps", "no-path", "with-a-setting"],
)
def test_an_insecure_pool_puts_host_and_path_before_the_namespace(
    setting: str, path: str, name: str
) -> None:
    assert SNI.insecure_pool(setting, "bar.com", path, "default", "ing") == name


@pytest.mark.parametrize(
    "setting, dedicated, name",
    [
        ("", False, "cluster--default-foo.com_foo_bar-ing1"),
        ("my-infra", False, "cluster--my-infra-default-foo.com_foo_bar-ing1"),
        ("", True, "cluster--default-foo.com_foo_bar-ing1-L7-dedicated"),
        ("my-infra", True, "cluster--my-infra-default-foo.com_foo_bar-ing1-L7-dedicated"),
    ],
    ids=["defaults", "with-a-setting", "dedicated", "dedicated-with-a-setting"],
)
def test_a_child_pool_puts_the_namespace_first_and_leaves_the_service_out(
    setting: str, dedicated: bool, name: str
) -> None:
    pool = SNI.child_pool(
        setting, "foo.com", "/foo/bar", "default", "ing1", service="avisvc", dedicated=dedicated
    )
    assert pool == name


def test_a_childs_policy_set_is_named_after_namespace_and_host() -> None:
    assert SNI.http_policy_set("", "foo.com", "default") == "cluster--default-foo.com"
    assert (
        SNI.http_policy_set("my-infra", "foo.com", "default") == "cluster--my-infra-default-foo.com"
    )


def test_an_evh_parent_is_not_hashed() -> None:
    assert EVH.shared("", 0) == "cluster--Shared-L7-EVH-0"
    assert EVH.shared("my-infra", 3) == "cluster--Shared-L7-EVH-my-infra-3"


@pytest.mark.parametrize(
    "host, name",
    [
        ("foo.com", "cluster--532fd312059d5096118cb0bc3d1135a36cc4f826"),
        ("noo.com", "cluster--21b7c6c75f4087fbe5c13a37dfe73919d237357b"),
    ],
)
def test_an_evh_child_is_hashed(host: str, name: str) -> None:
    assert EVH.child("", host) == name


def test_an_evh_pool_group_is_hashed_without_the_service() -> None:
    assert (
        EVH.child_pool("", "foo.com", "/foo/bar", "default", "ing1")
        == "cluster--317b5694e7fb82a13a6dc67deee04b5786f61562"
    )


def test_an_evh_pool_is_hashed_with_its_service() -> None:
    assert (
        EVH.child_pool("", "foo.com", "/foo/bar", "default", "ing1", service="avisvc")
        == "cluster--c8a6d90fa37bfbd275c21580f7c0ad57145cb883"
    )


def test_an_evh_policy_set_is_hashed() -> None:
    assert (
        EVH.http_policy_set("", "foo.com", "default")
        == "cluster--55aaae53d1d233409164e7b03b646f7284e86d88"
    )


def test_a_dedicated_evh_service_keeps_its_suffix_outside_the_hash() -> None:
    assert EVH.dedicated("", "foo.com") == "cluster--fc94484f7312a22cfb5bcc517b05649e256c24a8-EVH"


@pytest.mark.parametrize(
    "made, name",
    [
        (SNI.l4("default", "avi-alb-gw"), "cluster--default-avi-alb-gw"),
        (SNI.l4_pool("default", "hello", "TCP", 80), "cluster--default-hello-TCP-80"),
        (
            SNI.l4_pool("default", "hello", "TCP", 8080, "avi-alb-gw"),
            "cluster--default-hello-avi-alb-gw-TCP-8080",
        ),
    ],
    ids=["virtual-service", "pool-of-a-service", "pool-of-a-gateway-or-shared-vip"],
)
def test_l4_names_have_namespace_name_protocol_and_port(made: str, name: str) -> None:
    assert made == name


def test_l4_names_are_hashed_under_evh() -> None:
    plain = SNI.l4_pool("default", "hello", "UDP", 53)
    digest = hashlib.sha1(plain.encode(), usedforsecurity=False).hexdigest()
    assert EVH.l4_pool("default", "hello", "UDP", 53) == f"cluster--{digest}"
