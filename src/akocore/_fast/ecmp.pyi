from array import array
from collections.abc import Collection, Sequence
from typing import NamedTuple, Self, TypeVar, final, overload

from typing_extensions import Buffer, disjoint_base

_Flow = tuple[str | bytes, str | bytes, int, int, int]
_Hops = Sequence[tuple[str, int] | str]
_Out = TypeVar("_Out", bound=Buffer)

class Flows(NamedTuple):
    src: Sequence[str | bytes] | Buffer
    dst: Sequence[str | bytes] | Buffer
    proto: Sequence[int] | Buffer
    sport: Sequence[int] | Buffer
    dport: Sequence[int] | Buffer
    label: Sequence[int] | Buffer | None = None

@disjoint_base
class HopGroup:
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
    @property
    def bits(self) -> int: ...
    def __init__(
        self,
        hops: _Hops,
        *,
        seed: int,
        policy: int = 3,
        fields: int = 0x37,
        forwarded: bool = True,
        bits: int = 31,
    ) -> None: ...
    @overload
    def select(self, flows: Flows | Sequence[_Flow], out: None = None) -> array[int]: ...
    @overload
    def select(self, flows: Flows | Sequence[_Flow], out: _Out) -> _Out: ...
    @overload
    def hashes(self, flows: Flows | Sequence[_Flow], out: None = None) -> array[int]: ...
    @overload
    def hashes(self, flows: Flows | Sequence[_Flow], out: _Out) -> _Out: ...
    @overload
    def place(self, hashes: Buffer, out: None = None) -> array[int]: ...
    @overload
    def place(self, hashes: Buffer, out: _Out) -> _Out: ...
    def shares(self, flows: Flows | Sequence[_Flow]) -> dict[str, int]: ...

@final
class EcmpGroup(HopGroup):
    @property
    def down(self) -> tuple[str, ...]: ...
    @property
    def bounds(self) -> tuple[int, ...]: ...
    def __init__(
        self,
        hops: _Hops,
        *,
        seed: int,
        policy: int = 3,
        fields: int = 0x37,
        forwarded: bool = True,
        bits: int = 31,
        down: Collection[str] = (),
    ) -> None: ...

@disjoint_base
class TableGroup(HopGroup):
    @property
    def table(self) -> array[int]: ...

@final
class ModuloGroup(TableGroup): ...

@final
class MaglevGroup(TableGroup):
    def __init__(
        self,
        hops: _Hops,
        *,
        seed: int,
        policy: int = 3,
        fields: int = 0x37,
        forwarded: bool = True,
        bits: int = 31,
        size: int = 65537,
    ) -> None: ...

@final
class RendezvousGroup(HopGroup): ...

@final
class ResilientGroup(TableGroup):
    @property
    def idle_ms(self) -> int: ...
    @property
    def unbalanced_ms(self) -> int: ...
    @property
    def now_ms(self) -> int: ...
    @property
    def due_ms(self) -> int | None: ...
    @property
    def wanted(self) -> tuple[int, ...]: ...
    def __init__(
        self,
        hops: _Hops,
        *,
        seed: int,
        policy: int = 3,
        fields: int = 0x37,
        forwarded: bool = True,
        bits: int = 31,
        buckets: int = 128,
        idle_ms: int = 120_000,
        unbalanced_ms: int = 0,
        now_ms: int = 0,
    ) -> None: ...
    def copy(self) -> Self: ...
    def touch(self, hashes: Buffer, now_ms: int) -> None: ...
    def replace(
        self,
        hops: _Hops,
        now_ms: int,
        *,
        idle_ms: int | None = None,
        unbalanced_ms: int | None = None,
    ) -> int: ...
    def advance(self, now_ms: int) -> int: ...

def _instruction_sets() -> tuple[str, ...]: ...
def _hashes_by(
    instruction_set: str, group: HopGroup, flows: Flows | Sequence[_Flow]
) -> array[int]: ...
