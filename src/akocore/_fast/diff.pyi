from collections.abc import Mapping
from typing import NamedTuple

from typing_extensions import Buffer

READS_ENTRIES: bool

class Diff(NamedTuple):
    added: list[str]
    changed: list[str]
    removed: list[str]
    def __bool__(self) -> bool: ...

def fingerprint(data: Buffer) -> bytes: ...
def diff_fingerprints(desired: Mapping[str, bytes], current: Mapping[str, bytes]) -> Diff: ...
