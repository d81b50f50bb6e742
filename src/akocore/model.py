"""The nouns, in Avi's terms, and the one way of saying no."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import force_setattr

from akocore.shown import LONGEST, bounded

__all__ = ["HostModel", "L4Listener", "L4Pool", "Pool", "Refusal", "Route"]


class Refusal(Struct, frozen=True, gc=False, kw_only=True):
    """A part of an object that was not applied, and what its owner can do.

    ``warning``: the part *was* applied, though not to the letter.
    """

    object: str  # "Ingress/namespace/name", "File/path"
    field: str  # path in the manifest, "spec.rules[0].host"
    reason: str  # CamelCase: the condition's reason
    remedy: str  # what is wrong and what to do: one or two sentences
    line: int = 0  # line of the file, where known
    warning: bool = False

    def __post_init__(self) -> None:
        """Whatever an object says in it, a refusal is a sentence or two."""
        for name in ("object", "field", "remedy"):
            if len(text := getattr(self, name)) > LONGEST:
                force_setattr(self, name, bounded(text))


class Pool(Struct, frozen=True, gc=False):
    """Avi's pool of one path.  ``backend`` is the Service port behind it (one Envoy cluster)."""

    name: str
    backend: str | None  # "namespace/service/port"; None: nothing to send to, a served 503


class Route(Struct, frozen=True, gc=False):
    """One path of a host, in order of precedence.  ``path`` of a prefix has no trailing slash.

    ``answer``: a status that is given at once, in place of the pool's.
    """

    path: str
    exact: bool
    pool: Pool
    answer: int = 0


class HostModel(Struct, frozen=True, gc=False):
    """What one hostname serves: the unit of L7 work.  ``host`` "" is "any other host"."""

    host: str
    setting: str  # AviInfraSetting's name, "" for the defaults
    routes: tuple[Route, ...]
    certificate: str  # Secret "namespace/name", "" when there is none
    redirect: bool  # http → https


class L4Pool(Struct, frozen=True, gc=False):
    """What a port of a virtual service leads to: one Service port.

    ``sticky``: by the client's address; ``ranges``: who may come, () anyone.
    """

    name: str
    backend: str  # "namespace/service/port", of UDP "namespace/service/port/UDP"
    sticky: bool = False
    ranges: tuple[str, ...] = ()


class L4Listener(Struct, frozen=True, gc=False):
    """One protocol and port of a virtual service: the unit of L4 work.

    Without a pool nobody listens there: a client is refused at once.
    """

    protocol: str  # TCP or UDP
    port: int
    pool: L4Pool | None = None
