#!/usr/bin/env bash
# What a good guess gets wrong: a `ct timeout` policy of nftables that names `established` alone does
# not bound a flow that is picked up in its middle until its second packet.
#
# nftables 1.0.6 (Debian 12), Linux 6.18, nf_conntrack_tcp_loose = 1 (the default).
# Guess: an ACK without a SYN before it is tracked as ESTABLISHED, so with
#   policy = { established : 10 } it is forgotten after 10 s.
# Seen: it is listed as ESTABLISHED with 120 s, which is syn_sent's default.  The object's first
#   value is set for an unconfirmed flow whatever its state is (nft_ct_timeout_obj_eval); the state's
#   own counts from the second packet on.  With { syn_sent : 10, established : 10 } both have 10 s.
# Why it matters: a filter that forgets strangers' packets soon forgets single ones after two minutes.
#
# Needs root, Debian's apt-get, python3.  Makes a network namespace of its own.  Fails if it is otherwise.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
apt-get -qq download nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries=$(dirname "$(find root -name 'libnftables.so.1' | head -1)")

cat >send.py <<'PY'
"""One TCP packet with ACK alone, from port SOURCE, to this namespace's own loopback."""
import socket, struct, sys

source = int(sys.argv[1])
address = socket.inet_aton("127.0.0.1")
head = struct.pack("!HHIIBBHHH", source, 80, 1, 1, 5 << 4, 0x10, 1000, 0, 0)
words = struct.unpack("!16H", address + address + struct.pack("!BBH", 0, 6, len(head)) + head)
total = sum(words)
total = (total & 0xFFFF) + (total >> 16)
checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
packet = head[:16] + struct.pack("!H", checksum) + head[18:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
    raw.sendto(packet, ("127.0.0.1", 0))
PY

cat >inside.sh <<'SH'
set -euo pipefail
ip link set lo up
nft() { LD_LIBRARY_PATH=$LIBRARIES root/usr/sbin/nft "$@"; }
nft -f - <<'NFT'
table ip t {
  ct timeout one { protocol tcp; l3proto ip; policy = { established : 10 }; }
  ct timeout both { protocol tcp; l3proto ip; policy = { syn_sent : 10, established : 10 }; }
  chain out {
    type filter hook output priority filter
    tcp flags & rst == rst drop
    tcp sport 4001 ct state new ct timeout set "one"
    tcp sport 4002 ct state new ct timeout set "both"
  }
  chain in {
    type filter hook input priority filter
    tcp dport 80 drop
  }
}
NFT
left() { awk -v port="sport=$1" '$0 ~ port { print $6, $5 }' /proc/net/nf_conntrack | head -1; }
python3 send.py 4001; first=$(left 4001)
python3 send.py 4001; second=$(left 4001)
python3 send.py 4002; both=$(left 4002)
echo "established alone, first packet: $first; second: $second; with syn_sent, first: $both"
ok() { [ "${1% *}" = ESTABLISHED ] && [ "${1#* }" -ge "$2" ] && [ "${1#* }" -le "$3" ]; }
ok "$first" 100 120 && ok "$second" 1 10 && ok "$both" 1 10
SH
LIBRARIES=$libraries unshare --net bash inside.sh
echo "as described (Linux $(uname -r))"
