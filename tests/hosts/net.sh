# Sourced by scripts: an origin, sites behind shaped uplinks and hosts in them, each a network namespace of its own. Needs
# root.
#
#   hub ── origin        10.90.0.2
#    ├── site 1, 100 Mbit/s up and down: a bridge, 10.90.1.0/24, hosts .10 and up
#    └── site 2 ...
#
# The hub routes, so that multicast of devices stays in their site.

declare -a net_spaces=()
net_tag=hosts$$

space() { printf '%s-%s' "$net_tag" "$1"; }
add_space() { ip netns add "$(space "$1")"; net_spaces+=("$1"); ip -n "$(space "$1")" link set lo up; }
# on SPACE COMMAND...: runs COMMAND in the namespace.
on() { local at=$1; shift; ip netns exec "$(space "$at")" "$@"; }
# The same, replacing the shell of a background job, so that the job's process id is the command's.
in_place_of_shell() { local at=$1; shift; exec ip netns exec "$(space "$at")" "$@"; }

# shape SPACE DEVICE RATE: limits traffic out of DEVICE to RATE.
shape() { tc -n "$(space "$1")" qdisc add dev "$2" root tbf rate "$3" burst 1mb latency 50ms; }

# net_start SITES HOSTS UPLINK LAN: sites 1… with hosts 10… each.
net_start() {
  local sites=$1 hosts=$2 uplink=$3 lan=$4 s h
  add_space hub; add_space origin
  on hub sysctl -qw net.ipv4.ip_forward=1
  ip -n "$(space hub)" link add to-origin type veth peer name eth0 netns "$(space origin)"
  ip -n "$(space hub)" address add 10.90.0.1/24 dev to-origin; ip -n "$(space hub)" link set to-origin up
  ip -n "$(space origin)" address add 10.90.0.2/24 dev eth0; ip -n "$(space origin)" link set eth0 up
  ip -n "$(space origin)" route add default via 10.90.0.1
  for ((s = 1; s <= sites; s++)); do
    add_space "site$s"
    ip -n "$(space "site$s")" link add lan type bridge; ip -n "$(space "site$s")" link set lan up
    ip -n "$(space hub)" link add "to-site$s" type veth peer name uplink netns "$(space "site$s")"
    ip -n "$(space "site$s")" link set uplink master lan; ip -n "$(space "site$s")" link set uplink up
    ip -n "$(space hub)" address add "10.90.$s.1/24" dev "to-site$s"; ip -n "$(space hub)" link set "to-site$s" up
    shape hub "to-site$s" "$uplink"; shape "site$s" uplink "$uplink"
    for ((h = 10; h < 10 + hosts; h++)); do
      add_space "s$s-h$h"
      ip -n "$(space "site$s")" link add "h$h" type veth peer name eth0 netns "$(space "s$s-h$h")"
      ip -n "$(space "site$s")" link set "h$h" master lan; ip -n "$(space "site$s")" link set "h$h" up
      ip -n "$(space "s$s-h$h")" address add "10.90.$s.$h/24" dev eth0; ip -n "$(space "s$s-h$h")" link set eth0 up
      ip -n "$(space "s$s-h$h")" route add default via "10.90.$s.1"
      [ "$lan" = - ] || { shape "site$s" "h$h" "$lan"; shape "s$s-h$h" eth0 "$lan"; }
    done
  done
}
net_stop() { local name; for name in "${net_spaces[@]}"; do ip netns delete "$(space "$name")" 2>/dev/null || true; done; net_spaces=(); }

# into_site N, out_of_site N: bytes that have crossed its uplink so far.
into_site() { on hub cat "/sys/class/net/to-site$1/statistics/tx_bytes"; }
out_of_site() { on hub cat "/sys/class/net/to-site$1/statistics/rx_bytes"; }
# cut_site N, heal_site N: takes the uplink away, and brings it back.
cut_site() { ip -n "$(space hub)" link set "to-site$1" down; }
heal_site() { ip -n "$(space hub)" link set "to-site$1" up; }
