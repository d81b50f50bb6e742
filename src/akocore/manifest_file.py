"""One file of manifests: bytes in, typed objects and refusals out.  Pure.

YAML goes through libyaml's composer and straight from its nodes to plain values, with two
differences from `yaml.safe_load` that make it read as ``kubectl`` does: timestamps and
base-60 numbers stay strings, and the keys of a mapping are always strings.  JSON, also in a
``.yaml`` file, goes through orjson.  Lines are looked up on the way to a refusal only.

What a file may cost has bounds (`Bounds`), and a big one is read with pauses, so that other threads
have their turn.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson
import yaml
from msgspec import Struct

from akocore.fields import explained, no_such_field, spelt, unknown_fields
from akocore.kube.objects import (
    KINDS,
    AviInfraSetting,
    Network,
    Object,
    ServiceEngineGroup,
    decode,
    key_of,
)
from akocore.model import Refusal

if TYPE_CHECKING:
    from yaml import SafeLoader as _Base
else:
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml: slow, but the same

__all__ = ["BOUNDS", "Bounds", "Document", "Reading", "duplicate", "read", "too_large"]


class Bounds(Struct, frozen=True):
    """What one file may have at most.

    ``added``: values that it has more of when all aliases are written out.
    """

    size_bytes: int = 64 << 20
    documents: int = 100_000
    depth: int = 200
    added: int = 20_000


BOUNDS: Final = Bounds()


class Document(Struct, frozen=True):
    """One object of a file.  ``obj=None``: it is refused, its last good version stays."""

    id: str  # "Ingress/shop/web"
    obj: Object | None
    line: int  # where it begins; 0 for JSON behind the first line


class Reading(Struct, frozen=True):
    """What a file says.  ``partial``: something in it could not be told apart or read at all,
    so an object that it doesn't name may still be meant to exist."""

    documents: tuple[Document, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    partial: bool = False


def read(data: bytes, name: str, bounds: Bounds = BOUNDS) -> Reading:
    """The documents of the file ``name`` (relative path).  Cost: the file; never raises for it."""
    if len(data) > bounds.size_bytes:
        return too_large(name, len(data), bounds)
    documents: list[Document] = []
    refusals: list[Refusal] = []
    partial = False
    seen: dict[str, _Place] = {}
    try:
        for raw, where in _objects(data, name, bounds):
            found = _object(raw, where, name)
            if found is None:
                continue
            if isinstance(found, Refusal):
                refusals.append(found)
                if found.object.startswith("File/"):
                    partial = True
                    continue
                found = Document(found.object, None, found.line)
            if found.id in seen:
                first = f"Line {seen[found.id].line(())}"
                refusals.append(duplicate(found.id, first, where.line(())))
                continue
            seen[found.id] = where
            documents.append(found)
            refusals += _passed_over(found, raw, where)
    except _SyntaxError as err:
        refusal = Refusal(
            object=f"File/{name}", field="", reason=err.reason, remedy=err.remedy, line=err.line
        )
        return Reading(refusals=(refusal,), partial=True)
    return Reading(tuple(documents), tuple(refusals), partial)


def too_large(name: str, size_bytes: int, bounds: Bounds = BOUNDS) -> Reading:
    """What is said of a file of so many bytes, which nobody reads."""
    refusal = Refusal(
        object=f"File/{name}",
        field="",
        reason="TooLarge",
        remedy=f"It has {size_bytes} bytes, and {bounds.size_bytes} are read. Divide it.",
    )
    return Reading(refusals=(refusal,), partial=True)


def duplicate(id_: str, first: str, line: int) -> Refusal:
    """The refusal of an object that ``first`` (a file or a line) has already."""
    return Refusal(
        object=id_,
        field="metadata.name",
        reason="DuplicateObject",
        remedy=f"{first} has the same object, which stays. Remove one of the two.",
        line=line,
    )


# ── one document ────────────────────────────────────────────────────────────────────────────

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_NAMESPACE: Final = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}")


def _object(raw: Any, where: _Place, file: str) -> Document | Refusal | None:
    """The object of one mapping; None for a kind that akocore doesn't act on."""

    def no(path: tuple[str | int, ...], reason: str, remedy: str, id_: str = "") -> Refusal:
        return Refusal(
            object=id_ or f"File/{file}",
            field=spelt(path),
            reason=reason,
            remedy=remedy,
            line=where.line(path),
        )

    if not isinstance(raw, dict):
        return no((), "InvalidObject", "Write a Kubernetes object: apiVersion, kind, metadata.")
    version, kind = raw.get("apiVersion"), raw.get("kind")
    if not isinstance(version, str) or not version:
        return no(("apiVersion",), "InvalidField", "Add the field apiVersion as a string.")
    if not isinstance(kind, str) or not kind:
        return no(("kind",), "InvalidField", "Add the field kind as a string.")
    struct = KINDS.get((version, kind))
    known = struct or _other_version(version, kind)
    if known is None:
        return None

    meta = raw.get("metadata")
    if not isinstance(meta, dict):
        return no(("metadata",), "InvalidField", "Add metadata with a name.")
    name, namespace = meta.get("name"), meta.get("namespace") or "default"
    if not isinstance(name, str) or not _SUBDOMAIN.fullmatch(name):
        return no(
            ("metadata", "name"),
            "InvalidName",
            "Give a name of lower-case letters, digits, '-' and '.' (a DNS-1123 subdomain).",
        )
    if known.NAMESPACED and not (isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace)):
        return no(
            ("metadata", "namespace"),
            "InvalidName",
            "Give a namespace of lower-case letters, digits and '-' (a DNS-1123 label).",
        )
    id_ = key_of(known.stored(), f"{namespace}/{name}" if known.NAMESPACED else name)
    if struct is None:
        versions = " or ".join(v for (v, _), t in KINDS.items() if t is known)
        return no(("apiVersion",), "UnsupportedVersion", f"Write it as {versions}.", id_)

    meta = {**meta, "namespace": namespace if known.NAMESPACED else ""}
    if "creationTimestamp" in meta and meta["creationTimestamp"] is None:  # kubectl --dry-run
        del meta["creationTimestamp"]
    document = {**raw, "metadata": meta}
    try:
        return Document(id_, decode(document, struct), where.first)
    except msgspec.ValidationError as err:
        try:  # as the API server: null is the same as absent
            return Document(id_, decode(_without_nulls(document, {}), struct), where.first)
        except msgspec.ValidationError:
            path, remedy = explained(str(err), raw, struct)
            return no(path, "InvalidField", remedy, id_)


def _passed_over(found: Document, raw: dict[str, Any], where: _Place) -> Iterator[Refusal]:
    """What nobody reads of an object that governs others: a limit that is misspelt is none."""
    if isinstance(found.obj, AviInfraSetting | Network | ServiceEngineGroup):
        for path, there in unknown_fields(raw.get("spec"), found.obj.spec, ("spec",)):
            yield Refusal(
                object=found.id,
                field=spelt(path),
                reason="UnknownField",
                remedy=no_such_field(path, there),
                line=where.line(path),
                warning=True,
            )


def _other_version(version: str, kind: str) -> type[Object] | None:
    """The kind that is meant, though its version is not understood.

    A kind belongs to its group: Knative's Service is none of ours.  What has no group, or the
    group that Ingress came from, can't be another one's.
    """
    group = version.rpartition("/")[0]
    for (_, k), struct in KINDS.items():
        if k == kind and group in (struct.GROUP, "", "extensions"):
            return struct
    return None


def _without_nulls(value: Any, made: dict[int, Any]) -> Any:
    """``made``: by id of what is shared, as of `_value`."""
    if not isinstance(value, dict | list):
        return value
    if (found := made.get(id(value))) is not None:
        return found
    out: Any
    if isinstance(value, dict):
        out = {k: _without_nulls(v, made) for k, v in value.items() if v is not None}
    else:
        out = [_without_nulls(v, made) for v in value]
    made[id(value)] = out
    return out


# ── documents of a file ─────────────────────────────────────────────────────────────────────


class _SyntaxError(Exception):
    def __init__(self, reason: str, remedy: str, line: int) -> None:
        super().__init__(remedy)
        self.reason, self.remedy, self.line = reason, remedy, line


class _Place:
    """Where a document is, for lines.  Without a node it is composed when a line is wanted."""

    __slots__ = ("_data", "_node", "_part", "_path", "first")

    def __init__(
        self,
        node: yaml.Node | None,
        data: bytes = b"",
        part: int = 0,
        path: tuple[str | int, ...] = (),
    ) -> None:
        self._node, self._data, self._part, self._path = node, data, part, path
        self.first = node.start_mark.line + 1 if node else 0 if part or path else 1

    def item(self, field: str, index: int) -> _Place:
        """The place of an item of a List."""
        node = self._node and _walk(self._node, (field, index))[0]
        return _Place(node, self._data, self._part, () if node else (field, index))

    def line(self, path: tuple[str | int, ...]) -> int:
        """1-based line of ``path``, or of the nearest part of it that is there; 0 unknown."""
        node = self._node
        if node is None:
            try:
                node = [n for n in _nodes(self._data) if not _is_empty(n)][self._part]
            except (yaml.YAMLError, IndexError):
                return 0
        return _walk(node, self._path + path)[1]


def _walk(node: yaml.Node, path: tuple[str | int, ...]) -> tuple[yaml.Node, int]:
    """The node at ``path``, as far as there is one, and its line."""
    line: int = node.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            for key, value in reversed(node.value):
                if key.value == step:
                    node, line = value, key.start_mark.line + 1
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                break
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return node, line


def _objects(data: bytes, name: str, bounds: Bounds) -> Iterator[tuple[Any, _Place]]:
    """Every object of a file, Lists unrolled."""
    for raw, where in _documents(data, name, bounds):
        items = raw.get("items") if isinstance(raw, dict) else None
        if isinstance(items, list) and str(raw.get("kind")).endswith("List"):
            for i, item in enumerate(items):
                yield _typed(item, raw), where.item("items", i)
        else:
            yield raw, where


def _typed(item: Any, parent: dict[str, Any]) -> Any:
    """An item of an IngressList may leave out what the list says of all."""
    kind = parent["kind"].removesuffix("List")
    if isinstance(item, dict) and kind and "kind" not in item:
        return {"apiVersion": parent.get("apiVersion"), "kind": kind, **item}
    return item


# An alias or a tag may be a password that somebody should have quoted: it is not said which.
_NAMED: Final = re.compile(r"(alias|anchor|tag handle) (?:'[^']*'|\"[^\"]*\")")
_SEPARATOR: Final = re.compile(rb"^---(?=\s|\Z)", re.MULTILINE)


def _documents(data: bytes, name: str, bounds: Bounds = BOUNDS) -> Iterator[tuple[Any, _Place]]:
    """Every document of a file as a plain value; empty ones skipped."""
    data = data.removeprefix(codecs.BOM_UTF8)
    if name.endswith(".json"):
        if data.strip():
            try:
                yield orjson.loads(data), _Place(None, data)
            except orjson.JSONDecodeError as err:
                remedy = f"Correct the JSON: {err.msg}."
                raise _SyntaxError("InvalidJSON", remedy, err.lineno) from None
        return
    if data.removeprefix(b"---").lstrip()[:1] == b"{":
        parts = [p for p in _SEPARATOR.split(data) if p.strip()]
        try:
            values = [orjson.loads(p) for p in parts]
        except orjson.JSONDecodeError:
            pass  # a flow mapping then
        else:
            yield from ((v, _Place(None, data, i)) for i, v in enumerate(values))
            return
    try:
        left = bounds.added if b"*" in data and b"&" in data else None
        for count, node in enumerate(_nodes(data)):
            if count >= bounds.documents:
                raise _SyntaxError(
                    "TooLarge",
                    f"It has more than {bounds.documents} documents. Divide it.",
                    node.start_mark.line + 1,
                )
            if left is not None:
                left = _bounded(node, bounds, left)
            if not _is_empty(node):
                yield _value(node, {}), _Place(node)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        what = ", ".join(_NAMED.sub(r"\1", t) for t in (err.problem, err.context) if t)
        remedy = f"Correct the YAML: {what}."
        raise _SyntaxError("InvalidYAML", remedy, mark.line + 1 if mark else 0) from None
    except (yaml.YAMLError, RecursionError) as err:  # not text, or nested without end
        position = getattr(err, "position", None)
        line = data.count(b"\n", 0, position) + 1 if isinstance(position, int) else 0
        remedy = f"Write the file as UTF-8 text: {getattr(err, 'reason', err)}."
        raise _SyntaxError("InvalidYAML", remedy, line) from None


# ── YAML nodes as plain values ──────────────────────────────────────────────────────────────

_PLAIN: Final = "plain"  # our tag for an unquoted scalar, whose text decides
_STR: Final = "tag:yaml.org,2002:str"
_BY_TEXT: Final = frozenset(f"tag:yaml.org,2002:{t}" for t in ("int", "float", "bool", "null"))


class _Loader(_Base):
    """Composes nodes without resolving scalars: `_value` does it, from a cache."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STR
        return "tag:yaml.org,2002:" + ("seq" if kind is yaml.SequenceNode else "map")

    def descend_resolver(self, current_node: Any, current_index: Any) -> None: ...

    def ascend_resolver(self) -> None: ...


class _Slowly:
    """Bytes as a stream that lets other threads run: a parser in C does not, by itself."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, length: int = 0, /) -> bytes:
        if self._at:
            time.sleep(0)
        part = self._data[self._at : self._at + length]
        self._at += length
        return part


def _nodes(data: bytes) -> Iterator[yaml.Node]:
    loader = _Loader(_Slowly(data))
    try:
        while loader.check_node():
            if (node := loader.get_node()) is not None:
                yield node
    finally:
        loader.dispose()


def _bounded(node: yaml.Node, bounds: Bounds, left: int) -> int:
    """How many values a document leaves to the aliases of the next.  Cost: what is written."""
    made: dict[int, tuple[int, int]] = {}  # by id: how many values are in it, and how deep
    written = 0

    def measure(at: yaml.Node, above: int) -> tuple[int, int]:
        nonlocal written
        if isinstance(at, yaml.ScalarNode):
            written += 1
            return 1, 1
        if (known := made.get(id(at))) is not None:
            return known
        if above >= bounds.depth:
            raise _deep(at, bounds)
        written += 1
        made[id(at)] = (1, 1)  # an alias of itself: `_value` says so
        size, depth = 1, 1
        parts = (
            at.value if isinstance(at, yaml.SequenceNode) else [n for two in at.value for n in two]
        )
        for part in parts:
            inner, down = measure(part, above + 1)
            size, depth = size + inner, max(depth, down + 1)
        if above + depth > bounds.depth:
            raise _deep(at, bounds)
        made[id(at)] = (size, depth)
        return size, depth

    size, _ = measure(node, 0)
    if size - written > left:
        raise _SyntaxError(
            "TooLarge",
            f"Its aliases stand for more than {bounds.added} values. Write out fewer.",
            node.start_mark.line + 1,
        )
    return left - (size - written)


def _deep(node: yaml.Node, bounds: Bounds) -> _SyntaxError:
    remedy = f"Its values are nested more than {bounds.depth} deep. Write it flatter."
    return _SyntaxError("TooLarge", remedy, node.start_mark.line + 1)


def _is_empty(node: yaml.Node) -> bool:
    return node.tag == _PLAIN and _scalar(node.value) is None


def _value(node: yaml.Node, made: dict[int, Any]) -> Any:
    """A node as a plain value.  ``made``: collections by id of node, so that aliases are shared."""
    value = node.value
    if isinstance(node, yaml.ScalarNode):
        tag = node.tag
        if tag is _PLAIN or tag in _BY_TEXT:
            return _scalar(value) if len(value) < 48 else value
        if tag != _STR:
            raise _refuse(
                "a value that begins with '!' is a tag, and not understood: quote it", node
            )
        return value
    if (key := id(node)) in made:
        if made[key] is ...:
            raise _refuse("an alias contains itself", node)
        return made[key]
    made[key] = ...
    out: Any
    if isinstance(node, yaml.SequenceNode):
        out = [_value(v, made) for v in value]
    else:
        out = {}
        for k, v in value:
            if not isinstance(k, yaml.ScalarNode):
                raise _refuse("a mapping can't be a key (a template that was not rendered?)", k)
            if k.value == "<<" and k.tag is _PLAIN:
                merged = _value(v, made)
                for part in merged if isinstance(merged, list) else [merged]:
                    if not isinstance(part, dict):
                        raise _refuse("only mappings can be merged", v)
                    out = {**part, **out}  # what is written out wins, then the first
            else:
                out[k.value] = _value(v, made)
    made[key] = out
    return out


def _refuse(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


_WORDS: Final[dict[str, bool | None]] = {
    case(word): value
    for words, value in (
        (("true", "yes", "on"), True),
        (("false", "no", "off"), False),
        (("null", "~", ""), None),
    )
    for word in words
    for case in (str.lower, str.title, str.upper)
}
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+|(?P<octal>0o?[0-7_]+))")
_FLOAT: Final = re.compile(r"([-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?")


@lru_cache(maxsize=65536)
def _scalar(text: str) -> str | int | float | bool | None:
    """An unquoted scalar by the rules of YAML 1.1, without dates and base 60."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] in "+-.0123456789":
        if match := _INT.fullmatch(text):
            try:
                digits = text.replace("_", "")
                return int(digits.replace("o", ""), 8) if match["octal"] else int(digits, 0)
            except ValueError:  # "0x_": no digits at all
                return text
        if _FLOAT.fullmatch(text):
            return float(text.replace("_", ""))
    return text
