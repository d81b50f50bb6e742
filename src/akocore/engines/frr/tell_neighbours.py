"""Tell the neighbours on a segment that an address is here now: gratuitous ARP, unsolicited NA.

``python tell_neighbours.py INTERFACE=ADDRESS...`` tells them three times within 0.3 s, as one
packet may be lost.  ARP: RFC 826 and 5227; neighbour advertisements: RFC 4861, 7.2.6.

This file is run by itself, inside a network namespace, and needs nothing but the standard library.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from ipaddress import ip_address

_TIMES, _PAUSE_S = 3, 0.1
_ARP, _ETHERNET, _IPV4 = 0x0806, 1, 0x0800
_REQUEST, _REPLY = 1, 2
_NEIGHBOUR_ADVERTISEMENT, _OVERRIDE, _TARGET_MAC = 136, 0x20000000, 2


def _mac(interface: str) -> bytes:
    # Not from /sys: that shows the namespace that it was mounted in.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
        one.bind((interface, 0))
        mac: bytes = one.getsockname()[4]
        return mac


def _tell_ipv4(interface: str, address: bytes, mac: bytes) -> None:
    broadcast = b"\xff" * 6
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as one:
        one.bind((interface, 0))
        for operation in (_REQUEST, _REPLY):  # some take in the one, some the other
            head = broadcast + mac + struct.pack("!H", _ARP)
            arp = struct.pack("!HHBBH", _ETHERNET, _IPV4, 6, 4, operation)
            target = broadcast if operation == _REPLY else b"\0" * 6
            one.send(head + arp + mac + address + target + address)


def _tell_ipv6(interface: str, address: str, packed: bytes, mac: bytes) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as one:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        number = socket.if_nametoindex(interface)
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
        one.bind((address, 0))
        said = struct.pack("!BBHI", _NEIGHBOUR_ADVERTISEMENT, 0, 0, _OVERRIDE) + packed
        one.sendto(said + struct.pack("!BB", _TARGET_MAC, 1) + mac, ("ff02::1", 0, 0, number))


def tell(places: list[tuple[str, str]]) -> None:
    """Tell of each (interface, address).  Raises `OSError`."""
    macs = {interface: _mac(interface) for interface, _ in places}
    for number in range(_TIMES):
        if number:
            time.sleep(_PAUSE_S)
        for interface, address in places:
            ip = ip_address(address)
            if ip.version == 4:
                _tell_ipv4(interface, ip.packed, macs[interface])
            else:
                _tell_ipv6(interface, address, ip.packed, macs[interface])


if __name__ == "__main__":
    pairs = [word.partition("=") for word in sys.argv[1:]]
    tell([(interface, address) for interface, _, address in pairs])
