#!/usr/bin/env bash
# Builds the images of the benchmarks out of Debian's archive: one system in four releases.
#
#   base    Debian stable as released
#   mid     the same after `apt-get upgrade`: every update that needs no new package, so the old kernel
#   update  the same after `apt-get dist-upgrade`: a new kernel too
#   next    the Debian release after stable, with the same packages
#
#   tests/bench/corpus.sh OUT     leaves OUT/{base,mid,update,next}.{plain,lz4}.erofs and the trees in OUT/tree
#
# Needs root, Debian and its archive, 8 GB and some 20 minutes. A second run makes only missing images; existing base and
# update images are used as they are.
set -euo pipefail
out=${1:?usage: corpus.sh OUT}
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
need debootstrap:debootstrap mkfs.erofs:erofs-utils
mkdir -p "$out/tree"; out=$(realpath "$out")
stable=$(. /etc/os-release && echo "$VERSION_CODENAME")
declare -A after=([bullseye]=bookworm [bookworm]=trixie [trixie]=forky)
next=${after[$stable]:?no release after $stable is known here: add it to the list}
# archive SUITE: the address of the archive that this machine uses for it.
archive() { apt-get indextargets --format '$(REPO_URI) $(SUITE) $(CODENAME) $(RELEASE)' | awk -v s="$1" '$2 == s || $3 == s || $4 == s { print $1; exit }'; }
main=$(archive "$stable"); security=$(archive "$stable-security")
packages=linux-image-amd64,systemd-sysv,openssh-server,nginx,python3,python3-requests,python3-yaml,ca-certificates,curl
packages+=,postgresql-client,sqlite3,iproute2,nftables,chrony,git,vim-tiny,tcpdump,htop,jq,rsync,qemu-guest-agent

# bootstrap TREE SUITE
bootstrap() {
  [ -e "$out/tree/$1.done" ] && return
  rm -rf "${out:?}/tree/$1"
  debootstrap --variant=minbase --include="$packages" "$2" "$out/tree/$1" "$main" >"$out/$1.log"
  rm -rf "$out/tree/$1"/var/cache/apt/archives/*.deb "$out/tree/$1"/var/lib/apt/lists/* "$out/tree/$1"/var/cache/apt/*.bin
  touch "$out/tree/$1.done"
}
# upgraded TREE COMMANDS: a copy of base in which these apt commands have run.
upgraded() {
  [ -e "$out/tree/$1.done" ] && return
  local tree=$out/tree/$1
  rm -rf "$tree"; cp -a "$out/tree/base" "$tree"
  printf 'deb %s %s main\n' "$main" "$stable" "$main" "$stable-updates" "$security" "$stable-security" >"$tree/etc/apt/sources.list"
  cp /etc/resolv.conf "$tree/etc/resolv.conf"
  mount -t proc proc "$tree/proc"; mount --bind /dev "$tree/dev"
  trap 'umount -l "$tree/proc" "$tree/dev"' RETURN
  chroot "$tree" env DEBIAN_FRONTEND=noninteractive sh -ec "apt-get update; $2; apt-get clean; rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin" >"$out/$1.log" 2>&1
  touch "$out/tree/$1.done"
}
image() { # image TREE KIND ARGS...
  local to=$out/$1.$2.erofs; [ -e "$to" ] && return
  mkfs.erofs "${@:3}" -T1700000000 -U 11111111-2222-3333-4444-555555555555 "$to.part" "$out/tree/$1" >/dev/null 2>&1
  mv "$to.part" "$to"
}
apt-get update -qq
bootstrap base "$stable"
upgraded mid 'apt-get -y upgrade'
upgraded update 'apt-get -y dist-upgrade; apt-get -y autoremove --purge
  dpkg-query -W -f "\${db:Status-Abbrev} \${Package}\n" "linux-image-[0-9]*" | sed -n "s/^ii *//p" | sort -V | head -n -1 | xargs -r apt-get -y purge'
bootstrap next "$next"
for tree in base mid update next; do
  image "$tree" plain
  image "$tree" lz4 -zlz4hc,9 -C65536
done
ls -l "$out"/*.erofs
