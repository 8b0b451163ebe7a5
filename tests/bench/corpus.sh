#!/usr/bin/env bash
# Builds the images of the benchmarks out of Debian's archive: one system in six releases.
#
#   base    Debian stable as released
#   mid     the same after `apt-get upgrade`: every update that needs no new package, so the old kernel
#   update  the same after `apt-get dist-upgrade`: a new kernel too
#   next    the Debian release after stable, with the same packages
#   next-base, next-update   that release with the kernel before the newest one of its archive, and with every update,
#           as an installation has it: with zstd, so that mkinitramfs packs the initrd by it
#
#   tests/bench/corpus.sh OUT [TREE...]     leaves OUT/TREE.{plain,lz4}.erofs and the trees in OUT/tree; default: all
#
# Needs root, Debian and its archive, 12 GB and some 40 minutes. A second run makes only missing images; existing base and
# update images are used as they are.
set -euo pipefail
out=${1:?usage: corpus.sh OUT [TREE...]}; shift
trees=("$@"); ((${#trees[@]})) || trees=(base mid update next next-base next-update)
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
need debootstrap:debootstrap mkfs.erofs:erofs-utils curl:curl xz:xz-utils
mkdir -p "$out/tree"; out=$(realpath "$out")
stable=$(. /etc/os-release && echo "$VERSION_CODENAME")
declare -A after=([bullseye]=bookworm [bookworm]=trixie [trixie]=forky)
next=${after[$stable]:?no release after $stable is known here: add it to the list}
# archive SUITE: the address of the archive that this machine uses for it.
archive() { apt-get indextargets --format '$(REPO_URI) $(SUITE) $(CODENAME) $(RELEASE)' | awk -v s="$1" '$2 == s || $3 == s || $4 == s { print $1; exit }'; }
main=$(archive "$stable")
packages=linux-image-amd64,systemd-sysv,openssh-server,nginx,python3,python3-requests,python3-yaml,ca-certificates,curl
packages+=,postgresql-client,sqlite3,iproute2,nftables,chrony,git,vim-tiny,tcpdump,htop,jq,rsync,qemu-guest-agent

# kernels SUITE: the packages of kernels in the archive, the newest last.
kernels() { curl -fsS "${main}dists/$1/main/binary-amd64/Packages.xz" | xz -dc | sed -n 's/^Package: \(linux-image-[0-9.]*+deb[0-9]*-amd64\)$/\1/p' | sort -V; }
# bootstrap TREE SUITE [PACKAGES]: PACKAGES in place of the usual ones.
bootstrap() {
  [ -e "$out/tree/$1.done" ] && return
  rm -rf "${out:?}/tree/$1"
  debootstrap --variant=minbase --include="${3:-$packages}" "$2" "$out/tree/$1" "$main" >"$out/$1.log"
  rm -rf "$out/tree/$1"/var/cache/apt/archives/*.deb "$out/tree/$1"/var/lib/apt/lists/* "$out/tree/$1"/var/cache/apt/*.bin
  touch "$out/tree/$1.done"
}
# upgraded TREE FROM SUITE COMMANDS: a copy of FROM in which these apt commands have run.
upgraded() {
  [ -e "$out/tree/$1.done" ] && return
  local tree=$out/tree/$1 suite=$3 security
  # The security archive of a suite lies beside its main archive, where this machine does not use it itself.
  security=$(archive "$suite-security"); security=${security:-$(archive "$stable-security")}
  rm -rf "$tree"; cp -a "$out/tree/$2" "$tree"
  printf 'deb %s %s main\n' "$main" "$suite" "$main" "$suite-updates" "$security" "$suite-security" >"$tree/etc/apt/sources.list"
  cp /etc/resolv.conf "$tree/etc/resolv.conf"
  mount -t proc proc "$tree/proc"; mount --bind /dev "$tree/dev"
  trap 'umount -l "$tree/proc" "$tree/dev"; trap - RETURN' RETURN
  chroot "$tree" env DEBIAN_FRONTEND=noninteractive sh -ec "apt-get update; $4; apt-get clean; rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin" >"$out/$1.log" 2>&1
  touch "$out/tree/$1.done"
}
image() { # image TREE KIND ARGS...
  local to=$out/$1.$2.erofs; [ -e "$to" ] && return
  mkfs.erofs "${@:3}" -T1700000000 -U 11111111-2222-3333-4444-555555555555 "$to.part" "$out/tree/$1" >/dev/null 2>&1
  mv "$to.part" "$to"
}
# The newest of several kernels stays.
one_kernel='dpkg-query -W -f "\${db:Status-Abbrev} \${Package}\n" "linux-image-[0-9]*" | sed -n "s/^ii *//p" | sort -V | head -n -1 | xargs -r apt-get -y purge'
# tree NAME: makes a tree, and the one that it comes from.
tree() {
  case $1 in
    base) bootstrap base "$stable" ;;
    mid) tree base; upgraded mid base "$stable" 'apt-get -y upgrade' ;;
    update) tree base; upgraded update base "$stable" "apt-get -y dist-upgrade; apt-get -y autoremove --purge; $one_kernel" ;;
    next) bootstrap next "$next" ;;
    next-base) bootstrap next-base "$next" "${packages/linux-image-amd64/$(kernels "$next" | tail -n 2 | head -n 1)},zstd" ;;
    next-update) tree next-base
      upgraded next-update next-base "$next" "apt-get -y install linux-image-amd64; apt-get -y dist-upgrade; apt-get -y autoremove --purge; $one_kernel" ;;
    *) echo "corpus.sh knows no tree $1" >&2; exit 2 ;;
  esac
}
apt-get update -qq
for name in "${trees[@]}"; do
  tree "$name"
  image "$name" plain
  image "$name" lz4 -zlz4hc,9 -C65536
done
ls -l "$out"/*.erofs
