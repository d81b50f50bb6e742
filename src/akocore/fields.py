"""What is said of a field: where it is, what it may be, and that there is none of its name.

An API server says such things when it is asked to (``kubectl apply``); of files akocore does.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

__all__ = ["FieldPath", "explained", "no_such_field", "spelt", "unknown_fields"]

FieldPath = tuple[str | int, ...]

_MESSAGE: Final = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$(.*)`)?", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")


def spelt(path: FieldPath) -> str:
    """``spec.rules[0].host``; keys that are no identifiers in brackets, as Kubernetes does."""
    text = ""
    for step in path:
        if isinstance(step, int) or not step.isidentifier():
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def explained(message: str, written: Any, kind: type[Struct]) -> tuple[FieldPath, str]:
    """msgspec's message about ``written``, plain values, as the path of the field and a remedy.

    ``kind``: what it was to be.
    """
    match = _MESSAGE.fullmatch(message)
    what, at = (match[1], match[2] or "") if match else (message, "")
    path: list[str | int] = []
    for name, index, some_key in _STEP.findall(at):
        step = _some_key(written) if some_key else int(index) if index else name
        path.append(step)
        try:
            written = written[step]
        except (KeyError, IndexError, TypeError):
            written = None
    if missing := _MISSING.fullmatch(what):
        path.append(missing[1])
        return tuple(path), f"Add the field {spelt(tuple(path))}."
    if what.startswith("Invalid enum value") and (values := _choices(kind, tuple(path))):
        what += f". It may be {', '.join(values[:-1])} or {values[-1]}"
    return tuple(path), f"Correct {spelt(tuple(path)) or 'it'}: {what[:1].lower()}{what[1:]}."


def _some_key(written: Any) -> str:
    """The key that is meant, where msgspec doesn't say which: most open mappings have strings."""
    if not isinstance(written, dict):
        return ""
    odd = [key for key, value in written.items() if not isinstance(value, str)]
    return "..." if len(odd) == len(written) > 1 else next(iter(odd), "")


def _choices(kind: type[Struct], path: FieldPath) -> list[str]:
    """The values that the field at ``path`` may have, where they are a list."""
    at = [inspect.type_info(kind)]
    for step in path:
        at = [inner for one in at for inner in _inner(one, step)]
    return [
        str(value)
        for one in at
        for value in (
            one.values
            if isinstance(one, inspect.LiteralType)
            else [member.value for member in one.cls]
            if isinstance(one, inspect.EnumType)
            else []
        )
        if value != ""
    ]


def _inner(of: inspect.Type, step: str | int) -> list[inspect.Type]:
    match of:
        case inspect.StructType(fields=fields):
            found = [field.type for field in fields if field.encode_name == step]
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            found = [item]
        case inspect.DictType(value_type=value):
            found = [value]
        case _:
            return []
    return [one for each in found for one in _plain(each)]


def _plain(of: inspect.Type) -> list[inspect.Type]:
    match of:
        case inspect.Metadata(type=inner):
            return _plain(inner)
        case inspect.UnionType(types=several):
            return [one for each in several for one in _plain(each)]
        case _:
            return [of]


def unknown_fields(
    written: Any, read: Any, at: FieldPath = ()
) -> Iterator[tuple[FieldPath, tuple[str, ...]]]:
    """Fields in ``written``, plain values, that ``read``, what became of them, doesn't have.

    Of each its path, and which fields there are.  Cost: what is written.
    """
    if isinstance(read, Struct) and isinstance(written, Mapping):
        fields = msgspec.structs.fields(read)
        names = {field.encode_name: getattr(read, field.name) for field in fields}
        for name, value in written.items():
            if name in names:
                yield from unknown_fields(value, names[name], (*at, name))
            else:
                yield (*at, name), tuple(names)
    elif isinstance(read, Mapping) and isinstance(written, Mapping):
        for name, value in written.items():
            yield from unknown_fields(value, read.get(name), (*at, name))
    elif isinstance(read, tuple | list) and isinstance(written, list):
        for index, (one, of) in enumerate(zip(written, read, strict=False)):
            yield from unknown_fields(one, of, (*at, index))


def no_such_field(path: FieldPath, there: tuple[str, ...]) -> str:
    """What is said of a field that ``there`` is no name of."""
    near = difflib.get_close_matches(str(path[-1]), there, n=1)
    what = f"Write {near[0]}" if near else "Take it out"
    return f"There is no field {spelt(path)}, so it has no effect. {what}."
