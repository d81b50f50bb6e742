"""An interface's own IPv4 settings, where /proc/sys may not be written, as in a pod.

The kernel takes them with the capability NET_ADMIN alone, by netlink: in RTM_SETLINK, IFLA_AF_SPEC
has those of AF_INET (Linux include/uapi/linux/if_link.h, net/ipv4/devinet.c: inet_set_link_af).
"""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["set_interface"]

_SETLINK, _ERROR = 19, 2
_REQUEST_ACK = 0x1 | 0x4
_NESTED = 0x8000
_AF_SPEC, _INET_CONF = 26, 1
_NUMBERS = {"forwarding": 1, "rp_filter": 8}  # include/uapi/linux/ip.h


def set_interface(device: str, name: str, value: int) -> None:
    """Set net.ipv4.conf.DEVICE.NAME.  Raises `OSError`; `KeyError` for a name that isn't known."""
    setting = _attribute(_NUMBERS[name], struct.pack("=I", value))
    for kind in (_INET_CONF, socket.AF_INET, _AF_SPEC):
        setting = _attribute(kind | _NESTED, setting)
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(device), 0, 0) + setting
    head = struct.pack("=IHHII", 16 + len(body), _SETLINK, _REQUEST_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(head + body)
        answer = kernel.recv(4096)
    _, kind, _, _, _, error = struct.unpack("=IHHIIi", answer[:20])
    if kind == _ERROR and error:
        raise OSError(-error, os.strerror(-error), device)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
