"""The addresses of this machine, as its kernel lists them."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path

__all__ = ["own_addresses"]

_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")


def own_addresses(proc: Path = Path("/proc/net")) -> frozenset[str]:
    """IPv4 and IPv6 addresses of this network namespace; none where that can't be read."""
    found: set[str] = set()
    with suppress(OSError):
        found.update(_LOCAL.findall((proc / "fib_trie").read_text()))
    with suppress(OSError, ValueError, IndexError):
        lines = (proc / "if_inet6").read_text().splitlines()
        found.update(str(IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines)
    return frozenset(found)
