#!/usr/bin/env bash
# no_udp.sh COMMAND...: runs it in a network namespace of its own, with only a loopback interface, where every UDP
# packet is dropped.
set -euo pipefail
as_root=(); [ "$(id -u)" = 0 ] || as_root=(--map-root-user)
# Packets are dropped on arrival: a sender gets no error, as with a firewall on the way.
rules='add table inet no_udp; add chain inet no_udp in { type filter hook input priority 0; }; add rule inet no_udp in meta l4proto udp counter drop'
exec unshare "${as_root[@]}" --net -- sh -ec 'ip link set lo up; nft "$1"; shift; exec "$@"' sh "$rules" "$@"
