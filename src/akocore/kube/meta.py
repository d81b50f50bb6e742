"""``meta/v1``: what every object of Kubernetes has, as msgspec Structs.

All Structs are frozen trees without cycles, so they are left out of the garbage collector
(``gc=False``).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, Struct, structs

__all__ = [
    "Condition",
    "LabelSelector",
    "LabelledMeta",
    "Object",
    "ObjectMeta",
    "Part",
    "Port",
    "only_status",
]

Port = Annotated[int, Meta(ge=1, le=65535)]


class Part(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A part of an object: camelCase on the wire, frozen here."""


class ObjectMeta(Part, frozen=True):
    """``metadata``: what identifies, orders and annotates an object."""

    name: str
    namespace: str = ""
    creation_timestamp: str = ""
    generation: int = 0
    resource_version: str = ""
    uid: str = ""
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None

    @property
    def key(self) -> str:
        """``namespace/name``, or ``name`` for what is cluster-scoped."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def annotation(self, name: str) -> str | None:
        return self.annotations.get(name) if self.annotations else None


class LabelledMeta(ObjectMeta, frozen=True):
    """Of what is chosen by its labels.  Nobody reads those of the others: they stay on the wire."""

    labels: dict[str, str] | None = None


class Object(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True, kw_only=True):
    """What every object has.  ``STORED``: the kind's name here, if not ``KIND``; see `stored`."""

    GROUP: ClassVar[str] = ""
    VERSIONS: ClassVar[tuple[str, ...]] = ("v1",)
    KIND: ClassVar[str] = ""
    NAMESPACED: ClassVar[bool] = True
    STORED: ClassVar[str] = ""

    metadata: ObjectMeta

    @classmethod
    def stored(cls) -> str:
        """The kind's name in changes, in the store and in messages: unique, unlike ``KIND``."""
        return cls.STORED or cls.KIND

    @property
    def key(self) -> str:
        return self.metadata.key


def only_status(old: Object | None, new: Object | None) -> bool:
    """Whether nothing of an object is new but its status: our own writes come back to us."""
    if old is None or new is None or type(old) is not type(new):
        return False
    if getattr(old, "spec", None) != getattr(new, "spec", None):
        return False
    version = new.metadata.resource_version
    return structs.replace(old.metadata, resource_version=version) == new.metadata


class Condition(Part, frozen=True):
    """``meta/v1 Condition``."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class LabelSelectorRequirement(Part, frozen=True):
    key: str
    operator: str
    values: tuple[str, ...] = ()


class LabelSelector(Part, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()
