"""One file: what is understood, what is refused, and on which line."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from akocore.kube.objects import AviInfraSetting, Ingress, Service
from akocore.manifest_file import Bounds, _documents, _nodes, _without_nulls, read
from akocore.model import Refusal

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.manifest"))


def ids(text: str, name: str = "a.yaml") -> list[str]:
    reading = read(text.encode(), name)
    assert reading.refusals == ()
    return [d.id for d in reading.documents]


def refusal(text: str, name: str = "a.yaml") -> Refusal:
    (only,) = read(text.encode(), name).refusals
    return only


def value(text: str, name: str = "a.yaml") -> object:
    ((raw, _),) = _documents(text.encode(), name)
    return raw


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_a_bad_manifest_is_refused_as_its_golden_says(
    path: Path, request: pytest.FixtureRequest
) -> None:
    """``FILENAME``, the manifest, a line of ``====``, then the ids that are good and refusals."""
    name, _, rest = path.read_text().partition("\n")
    manifest, _, want = rest.partition("====\n")
    reading = read(manifest.encode(), name)
    lines = [f"good {d.id}" for d in reading.documents if d.obj is not None]
    for r in reading.refusals:
        lines.append(f"{name}:{r.line}: {r.object} {r.field or '-'} {r.reason}")
        lines.append(f"    {r.remedy}")
    got = "\n".join(lines) + "\n"
    if request.config.getoption("--update-golden", default=False):
        path.write_text(f"{name}\n{manifest}====\n{got}")
    else:
        assert got == want


def test_documents_lists_and_typed_lists_are_unrolled_and_empty_documents_skipped() -> None:
    text = """---
# only a comment
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b, namespace: dropped}}
---
~
---
apiVersion: networking.k8s.io/v1
kind: IngressList
items:
- metadata: {name: c, namespace: shop}
...
"""
    assert ids(text) == ["Service/default/a", "Namespace/b", "Ingress/shop/c"]


def test_yaml_that_is_json_and_json_are_the_same_as_yaml() -> None:
    raw = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}
    plain = read(yaml.safe_dump(raw).encode(), "a.yaml").documents
    for text, name in (
        (json.dumps(raw), "a.json"),
        (json.dumps(raw, indent="\t"), "a.yaml"),
        ("\ufeff" + json.dumps(raw), "a.json"),
        ("---\n" + json.dumps(raw) + "\n---\n", "a.yml"),
        ("{apiVersion: v1, kind: Service, metadata: {name: a}}", "a.yaml"),
    ):
        assert read(text.encode(), name).documents == plain


def test_dates_are_strings_and_keys_are_strings_and_the_last_of_two_keys_wins() -> None:
    text = """
apiVersion: v1
kind: Service
metadata:
  name: a
  creationTimestamp: 2026-01-02T03:04:05Z
  labels: {app: hello, app: gslb, 443: x, on: y}
"""
    (document,) = read(text.encode(), "a.yaml").documents
    assert isinstance(document.obj, Service)
    assert document.obj.metadata.creation_timestamp == "2026-01-02T03:04:05Z"
    assert document.obj.metadata.labels == {"app": "gslb", "443": "x", "on": "y"}


def test_nulls_are_absent_as_for_an_api_server() -> None:
    text = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: a, creationTimestamp: null}
spec: {rules: null, tls: ~, ingressClassName: null}
"""
    (document,) = read(text.encode(), "a.yaml").documents
    assert isinstance(document.obj, Ingress)
    assert document.obj.spec.rules == ()


def test_anchors_and_merges_are_followed_and_what_is_written_out_wins() -> None:
    text = """
a: &a {x: 1, y: 2}
b: {<<: *a, y: 3}
c: {y: 4, <<: [{x: 5}, *a]}
d: [*a, *a]
"""
    a = {"x": 1, "y": 2}
    assert value(text) == {"a": a, "b": {"x": 1, "y": 3}, "c": {"x": 5, "y": 4}, "d": [a, a]}


def test_without_libyaml_it_is_slower_and_the_same() -> None:
    code = (
        "import yaml; del yaml.CSafeLoader\n"
        "from akocore.manifest_file import _documents\n"
        "print([v for v, _ in _documents(b'a: 1\\nb: 2026-01-01\\n---\\n[x, yes]', 'a.yaml')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[{'a': 1, 'b': '2026-01-01'}, ['x', True]]"


ALIASES = "a: &a [x, x, x]\nb: [*a, *a]\nc: {d: *a}\n"  # three more of four values each


def test_values_that_aliases_stand_for_are_bounded() -> None:
    said = read(ALIASES.encode(), "a.yaml", Bounds(added=11))
    (no,) = said.refusals
    assert (no.object, no.reason, no.line, said.partial) == ("File/a.yaml", "TooLarge", 1, True)
    assert "more than 11 values" in no.remedy
    said = read(ALIASES.encode(), "a.yaml", Bounds(added=12))
    assert [r.reason for r in said.refusals] == ["InvalidField"]  # it is no object: all was read
    two = f"{ALIASES}---\n{ALIASES}"  # of the file, not of a document
    (no,) = read(two.encode(), "a.yaml", Bounds(added=23)).refusals
    assert (no.reason, no.line) == ("TooLarge", 5)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(size_bytes=20), "and 20 are read"),
        (Bounds(documents=1), "more than 1 documents"),
        (Bounds(depth=2), "nested more than 2 deep"),
    ],
    ids=["bytes", "documents", "depth"],
)
def test_what_a_file_may_cost_is_bounded(bounds: Bounds, words: str) -> None:
    text = "a: &a b\nc: *a\nd: [[e]]\n---\na: b\n"
    said = read(text.encode(), "a.yaml", bounds)
    assert said.partial
    assert said.refusals[-1].reason == "TooLarge"
    assert words in said.refusals[-1].remedy


def test_what_is_shared_stays_shared_while_nulls_are_taken_out() -> None:
    shared = {"a": None, "b": [1, None]}
    found = _without_nulls({"x": shared, "y": [shared, shared]}, {})
    assert found == {"x": {"b": [1, None]}, "y": [{"b": [1, None]}] * 2}
    assert found["x"] is found["y"][0] is found["y"][1]


def test_other_threads_have_their_turn_while_a_big_document_is_parsed() -> None:
    lines = b"".join(b"k%d: {a: [b, c], d: e}\n" % i for i in range(40_000))
    turns, done = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    other = threading.Thread(target=count)
    other.start()
    list(_nodes(lines))
    done.set()
    other.join()
    assert turns >= 10  # a parser in C that never stops leaves it one or two


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]", "[" * 2000, "a: !!python/object:os.system x", "{{ .Values.x }}: y", "a\x00b"],
    ids=["a loop", "very deep", "foreign tag", "template", "NUL"],
)
def test_what_is_no_yaml_is_a_refusal_and_no_exception(text: str) -> None:
    assert refusal(text).reason == "InvalidYAML"


@pytest.mark.parametrize("without", ["", "import yaml; del yaml.CSafeLoader"])
@pytest.mark.parametrize("value", ["!hunter2", "!!hunter2", "*hunter2", "!hunter2!x", '"hunter2'])
def test_a_password_that_reads_as_yaml_is_not_repeated(value: str, without: str) -> None:
    code = (
        f"{without}\n"
        "from akocore.manifest_file import read\n"
        f"print(read(b'password: {value}', 'a.yaml').refusals[0].remedy)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Correct the YAML: ")
    assert "hunter2" not in run.stdout


def test_bytes_that_are_no_text_are_a_refusal_with_a_line() -> None:
    (only,) = read(b"a: b\nc: \xff\xfe\n", "a.yaml").refusals
    assert (only.reason, only.line) == ("InvalidYAML", 2)


@pytest.mark.parametrize(
    "head",
    [
        "apiVersion: apps/v1\nkind: Deployment",
        "apiVersion: networking.istio.io/v1\nkind: Gateway",
        "apiVersion: serving.knative.dev/v1\nkind: Service",
        "apiVersion: networking.internal.knative.dev/v1alpha1\nkind: Ingress",
    ],
)
def test_kinds_of_others_are_quietly_ignored(head: str) -> None:
    assert ids(head + "\nmetadata: {}\n") == []


@pytest.mark.parametrize(
    ("version", "kind", "understood"),
    [
        ("ako.vmware.com/v1", "AviInfraSetting", ("ako.vmware.com/v1alpha1", "v1beta1")),
        ("extensions/v1beta1", "Ingress", ("networking.k8s.io/v1",)),
        ("v1", "Ingress", ("networking.k8s.io/v1",)),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", ("discovery.k8s.io/v1",)),
    ],
)
def test_an_unknown_version_is_refused_with_those_that_are_understood(
    version: str, kind: str, understood: tuple[str, ...]
) -> None:
    no = refusal(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n")
    assert (no.reason, no.field, no.line) == ("UnsupportedVersion", "apiVersion", 1)
    assert all(v in no.remedy for v in understood)


def test_both_versions_of_a_crd_are_the_same_object() -> None:
    for version in AviInfraSetting.VERSIONS:
        text = f"apiVersion: ako.vmware.com/{version}\nkind: AviInfraSetting\nmetadata: {{name: a}}"
        assert ids(text) == ["AviInfraSetting/a"]


_words = st.one_of(
    st.sampled_from(["yes", "No", "ON", "off", "true", "~", "null", "0x1F", "010", "1_0", "+1"]),
    st.sampled_from(["1.5", "-.5", "1.e+3", "1e3", "08", "0b11", "-0", "", ".", "-", "_1", "0o7x"]),
    st.from_regex(r"[-+]?[0-9a-fx_.]{1,8}", fullmatch=True),
)


@given(_words)
def test_plain_scalars_mean_what_they_mean_to_pyyaml(text: str) -> None:
    try:
        want = yaml.safe_load(f"a: {text}")["a"]
    except (yaml.YAMLError, ValueError):
        return
    if isinstance(want, datetime.date) or ":" in text or (want != want):
        return
    assert value(f"a: {text}") == {"a": want}
    assert type(value(f"a: {text}")["a"]) is type(want)  # type: ignore[index]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), _json, min_size=1, max_size=4))
def test_yaml_and_json_of_the_same_value_read_the_same(raw: dict[str, object]) -> None:
    assert value(json.dumps(raw), "a.json") == raw
    assert value(yaml.safe_dump(raw, sort_keys=False)) == raw


@given(st.binary(max_size=200), st.sampled_from(["a.yaml", "a.json"]))
def test_no_bytes_raise(data: bytes, name: str) -> None:
    read(data, name)


_GOOD = b"""apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec: {rules: [{host: a.test, http: {paths: [{backend: {service: {name: web}}}]}}]}
"""


@given(st.integers(0, len(_GOOD) - 1), st.integers(0, 255))
def test_one_wrong_byte_never_raises_and_names_a_line_of_the_file(at: int, byte: int) -> None:
    data = _GOOD[:at] + bytes([byte]) + _GOOD[at + 1 :]
    for no in read(data, "a.yaml").refusals:
        assert 0 <= no.line <= 6
        assert no.remedy.endswith(".")


SETTING = """apiVersion: ako.vmware.com/v1alpha1
kind: AviInfraSetting
metadata: {name: edge, labels: {any: thing}}
spec:
  l7Settings: {shardSize: SMALL}
  clientLimits:
    CLIENT
"""


def test_a_field_that_nobody_reads_is_told_and_the_rest_is_served() -> None:
    reading = read(SETTING.replace("CLIENT", "connection: 5").encode(), "a.yaml")
    (document,), (told,) = reading.documents, reading.refusals
    assert isinstance(document.obj, AviInfraSetting)
    assert (told.object, told.field) == ("AviInfraSetting/edge", "spec.clientLimits.connection")
    assert (told.reason, told.line, told.warning) == ("UnknownField", 7, True)
    assert told.remedy.endswith("so it has no effect. Write connections.")
    network = "apiVersion: akocore.io/v1alpha1\nkind: Network\nmetadata: {name: n}\n"
    told = refusal(network + "spec: {subnet: 10.0.0.0/24, vipsPerTenant: 1, vipRanges: []}\n")
    assert told.field == "spec.vipsPerTenant"


def test_of_a_value_that_is_none_of_a_list_the_list_is_told() -> None:
    told = refusal(SETTING.replace("CLIENT", "escapedSlashes: keep"))
    assert told.field == "spec.clientLimits.escapedSlashes"
    assert told.remedy.endswith(
        "It may be KeepUnchanged, RejectRequest, UnescapeAndForward or UnescapeAndRedirect."
    )
