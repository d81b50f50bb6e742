"""ReferenceGrant: who may name what in another namespace."""

from __future__ import annotations

from collections.abc import Iterable

from akocore.kube.gateway_objects import GATEWAY_API, ReferenceGrant

__all__ = ["permits"]


def permits(
    grants: Iterable[ReferenceGrant],
    kind: str,
    namespace: str,
    to_kind: str,
    to_name: str,
    to_group: str = "",
) -> bool:
    """Whether one of the grants of a namespace lets ``kind`` of ``namespace`` name an object.

    Cost: the grants of that namespace.
    """
    for grant in grants:
        if not any(
            (one.group, one.kind, one.namespace) == (GATEWAY_API, kind, namespace)
            for one in grant.spec.from_
        ):
            continue
        if any(
            (one.group, one.kind) == (to_group, to_kind) and one.name in ("", to_name)
            for one in grant.spec.to
        ):
            return True
    return False
