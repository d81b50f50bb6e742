"""A second chance for flows: no connection breaks when Service Engines come, go or change places.

A router that spreads flows by hash threshold sends about half of them elsewhere when its next
hops change, and who gets such a packet has no socket for it.  Here it doesn't answer by RST but
hands the packet on, round the ring of the group's Service Engines, until it is with its owner,
which answers straight to the client.  The kernel does all of it (nftables, policy routing);
akocore only writes the rules when the ring changes.  `plan` says which they are and why,
`apply` brings them into a network namespace.
"""

from akocore.engines.handover.apply import Counters, Handover, HandoverError, bring, interface_of
from akocore.engines.handover.plan import Member, Ring, looks_back

__all__ = [
    "Counters",
    "Handover",
    "HandoverError",
    "Member",
    "Ring",
    "bring",
    "interface_of",
    "looks_back",
]
