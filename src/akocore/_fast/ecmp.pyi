from array import array
from collections.abc import Sequence
from typing import NamedTuple, final

class Flows(NamedTuple):
    src: Sequence[str | bytes]
    dst: Sequence[str | bytes]
    proto: Sequence[int]
    sport: Sequence[int]
    dport: Sequence[int]

@final
class EcmpGroup:
    @property
    def hops(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def seed(self) -> int: ...
    @property
    def policy(self) -> int: ...
    @property
    def fields(self) -> int: ...
    @property
    def forwarded(self) -> bool: ...
    def __init__(
        self,
        hops: Sequence[tuple[str, int] | str],
        *,
        seed: int,
        policy: int = 3,
        fields: int = 0x37,
        forwarded: bool = True,
    ) -> None: ...
    def select(
        self, flows: Flows | Sequence[tuple[str | bytes, str | bytes, int, int, int]]
    ) -> array[int]: ...
    def shares(
        self, flows: Flows | Sequence[tuple[str | bytes, str | bytes, int, int, int]]
    ) -> dict[str, int]: ...
