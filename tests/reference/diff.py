"""Twin of akocore._fast.diff, for exact str and bytes."""

from collections.abc import Mapping


def diff_fingerprints(
    desired: Mapping[str, bytes], current: Mapping[str, bytes]
) -> tuple[list[str], list[str], list[str]]:
    for side in (desired, current):
        if not isinstance(side, Mapping):
            raise TypeError(side)
        for name, value in side.items():
            if not isinstance(name, str) or not isinstance(value, bytes):
                raise TypeError(name)
            if len(value) != 16:
                raise ValueError(name)
    return (
        [name for name in desired if name not in current],
        [name for name in desired if name in current and desired[name] != current[name]],
        [name for name in current if name not in desired],
    )
