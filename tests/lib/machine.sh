# Sourced by scripts: Debian systems that are booted, with systemd as their process 1, in namespaces of their own: mounts,
# processes, network, control groups. Nothing of the machine changes. Needs root. All files are under $machines_dir.

declare -A machine_pids=() machine_inits=()
# The network between the machines, and the address in it from which this script looks at them.
machines_network=10.77.0 machines_host=10.77.0.1

# machines_can: whether this system can boot machines; prints why not.
machines_can() {
  [ "$(id -u)" = 0 ] || { echo "this is not root"; return 1; }
  grep -qw cgroup2 /proc/filesystems || { echo "the kernel has no control groups of version 2"; return 1; }
  unshare --mount --pid --net --cgroup --fork sh -c 'd=$(mktemp -d) && mount -t cgroup2 none "$d" && umount "$d" && rmdir "$d"' 2>/dev/null ||
    { echo "no namespaces, or no mounts in them"; return 1; }
}

# debian_root FILE: makes a Debian of this machine's release with systemd, as an archive, unless it is there.
debian_root() {
  [ -e "$1" ] && return 0
  mkdir -p "$(dirname "$1")"
  # apt without recommendations, documentation and translations: what is left boots.
  mmdebstrap --quiet --variant=minbase --include=systemd,systemd-sysv --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$1.part.tar" >&2
  mv "$1.part.tar" "$1"
}

# machines_open ARCHIVE: unpacks the Debian that all machines begin with, and makes their network.
machines_open() {
  mkdir -p "$machines_dir/debian"
  tar -C "$machines_dir/debian" -xf "$1"
  unshare --net sleep infinity &
  machine_pids[network]=$!
  until [ "$(readlink "/proc/${machine_pids[network]}/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
  in_network ip link add cable type bridge
  in_network ip address add "$machines_host/24" dev cable
  in_network ip link set cable up
  in_network ip link set lo up
}

# in_network COMMAND...: runs it at the address $machines_host.
in_network() { nsenter -t "${machine_pids[network]}" -n "$@"; }

# machine_boot NAME N [HOST:N...]: boots a machine with the address $machines_network.N, which knows these hosts by name.
machine_boot() {
  local name=$1 number=$2 dir=$machines_dir/$1 init host; shift 2
  mkdir -p "$dir/changes/etc" "$dir/work" "$dir/root"
  echo "$name" >"$dir/changes/etc/hostname"
  { echo 127.0.0.1 localhost; for host in "$@"; do echo "$machines_network.${host##*:} ${host%%:*}"; done; } >"$dir/changes/etc/hosts"
  unshare --mount --propagation private bash -euc '
    group=$(mktemp -d); mount -t cgroup2 none "$group"
    mkdir -p "$group/distd-machines-$2"; echo $$ >"$group/distd-machines-$2/cgroup.procs"
    umount "$group"; rmdir "$group"
    mount -t overlay overlay -o "lowerdir=$3/debian,upperdir=$1/changes,workdir=$1/work" "$1/root"
    exec unshare --cgroup --pid --ipc --uts --net --fork --kill-child bash -euc "
      cd \"\$1/root\"; hostname \"\$2\"
      mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup
      for d in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs \$d; done; chmod 1777 tmp
      for d in null zero full random urandom tty; do : >dev/\$d; mount --bind /dev/\$d dev/\$d; done
      ln -s /proc/self/fd dev/fd; mkdir dev/pts dev/shm; mount -t tmpfs tmpfs dev/shm
      mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
      mkdir run/before; pivot_root . run/before; umount -l /run/before; rmdir /run/before
      # systemd makes mounts of services, such as their credentials, in namespaces from which they have to come here.
      mount --make-rshared /
      exec env -i container=distd-test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd --show-status=false --log-target=journal" bash "$1" "$2"
  ' bash "$dir" "$name" "$machines_dir" >"$dir/console" 2>&1 </dev/null &
  machine_pids[$name]=$!
  local deadline=$((SECONDS + 30))
  until init=$(cat "/proc/${machine_pids[$name]}/task/${machine_pids[$name]}/children" 2>/dev/null) && [ -n "$init" ] &&
    [ "$(cat "/proc/${init// /}/comm" 2>/dev/null)" = systemd ]; do
    [ $SECONDS -lt $deadline ] || { cat "$dir/console" >&2; echo "$name does not boot" >&2; return 1; }
    sleep 0.05
  done
  machine_inits[$name]=${init// /}
  in_network ip link add "to-$name" type veth peer name eth0 netns "${machine_inits[$name]}"
  in_network ip link set "to-$name" master cable up
  nsenter -t "${machine_inits[$name]}" -n sh -euc "ip link set lo up; ip address add $machines_network.$number/24 dev eth0; ip link set eth0 up"
  until machine "$name" systemctl is-system-running --wait >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || { machine "$name" systemctl list-units --failed >&2; echo "$name does not come up" >&2; return 1; }
    sleep 0.1
  done
}

# machine NAME COMMAND...: runs it on the machine, as root, in /root.
machine() {
  local name=$1; shift
  nsenter -t "${machine_inits[$name]}" --all env -i -C /root HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "$@"
}

# machine_files NAME: the directory that is /root on the machine.
machine_files() { mkdir -p "$machines_dir/$1/changes/root"; echo "/proc/${machine_inits[$1]}/root/root"; }

# machines_close: ends all machines, and removes what they left.
machines_close() {
  local name group
  for name in "${!machine_inits[@]}"; do kill -KILL "${machine_inits[$name]}" 2>/dev/null || true; done
  for name in "${!machine_pids[@]}"; do kill "${machine_pids[$name]}" 2>/dev/null || true; done
  for name in "${!machine_pids[@]}"; do wait "${machine_pids[$name]}" 2>/dev/null || true; done
  [ ${#machine_inits[@]} -eq 0 ] || unshare --mount --propagation private bash -c '
    group=$(mktemp -d); mount -t cgroup2 none "$group"
    for name in "$@"; do find "$group/distd-machines-$name" -depth -type d -exec rmdir {} + 2>/dev/null; done
    umount "$group"; rmdir "$group"' bash "${!machine_inits[@]}"
  machine_pids=() machine_inits=()
}
