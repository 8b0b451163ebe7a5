#!/usr/bin/env bash
# A Debian 12 with two root slots in a virtual machine, updated by distd under a real boot loader. By hand, as root.
#
#   tests/vm/run.sh grub|systemd-boot|rauc       an origin on loopback, a device in the machine, releases 1 to 5; rauc:
#                                                GRUB, for which RAUC's service decides
#   tests/vm/run.sh --prove grub|systemd-boot    the boot loader alone, without the agent
#   tests/vm/run.sh --cuts grub|systemd-boot healthy|sick [OPTION...]
#                                                power cuts of an update, recorded, rebuilt and booted: options of cuts.py
#
#   DISTD_TEST_BIN=DIR   binaries that are there already; default: target/release, built
#   DISTD_TEST_VM=DIR    keeps the images there for the next run, 3 GB, and what --cuts has recorded and booted;
#                        default: a temporary directory
#
# Installs qemu, OVMF and the tools of images from Debian. Says "skipped" and why, and ends with 0, where they cannot be
# had. Without a usable KVM the machine is emulated, which takes four times as long.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
skipped() { echo "skipped: $1"; exit 0; }

mode=
case ${1:-} in --prove|--cuts) mode=$1; shift ;; esac
loader=${1:-}
case $mode:$loader in
  *:grub|*:systemd-boot|:rauc) ;;
  *) echo "usage: tests/vm/run.sh [--prove|--cuts] grub|systemd-boot|rauc, rauc without an option" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || skipped "images are made as root"
[ "$(uname -m)" = x86_64 ] || skipped "the machine is x86_64"
need qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mcopy:mtools mkfs.vfat:dosfstools sfdisk:fdisk \
  mke2fs:e2fsprogs grub-mkimage:grub-common strip:binutils || skipped "no package source"
# Packages of files, without a command.
for pair in /usr/share/OVMF/OVMF_CODE_4M.fd:ovmf /usr/lib/grub/x86_64-efi:grub-efi-amd64-bin \
  /usr/lib/systemd/boot/efi/systemd-bootx64.efi:systemd-boot-efi; do
  [ -e "${pair%%:*}" ] || need "no such command:${pair##*:}" || skipped "no package ${pair##*:}"
done

bin=${DISTD_TEST_BIN:-}
if [ -z "$bin" ]; then
  bin=$here/target/release
  (cd "$here" && cargo build --release --locked --bins)
fi
work=$(mktemp -d "${TMPDIR:-/var/tmp}/distd-vm.XXXXXX"); realm_dir=$work
trap 'stop_realm; rm -rf "$work"' EXIT
images=${DISTD_TEST_VM:-$work/images}
mkdir -p "$images"
if [ "$mode" = --cuts ]; then
  update=${2:?healthy or sick}; shift 2
  need cpio:cpio depmod:kmod || skipped "no package source"
  # The images of a recording that is there must not change.
  [ -e "$images/lean/tools.img" ] || "$here/tests/vm/lean.sh" "$bin/distd" "$images/lean"
  BIN=$bin "$here/tests/vm/cuts.py" "$loader" "$update" "$images/lean" "$images/cuts" "$@"
  exit
fi
echo "== images"
"$here/tests/vm/image.sh" "$bin/distd" "$images"

if [ "$mode" = --prove ]; then
  echo "== the boot loader"
  "$here/tests/vm/prove.py" "$loader" "$images" "$work/guest"
  exit
fi
echo "== origin, releases, device"
# What is tested is what boots, not the bytes of an update.
start_origin --patches false
for version in 1 2 3 4 5; do
  admin -q push "$images/release-$version.img" --product os --version "$version"
done
admin channel set os:stable 1 >/dev/null
enroll_device device "$origin_quic"
echo "== updates"
DISTD=$bin/distd ADMIN=$work/admin DEVICE=$work/device PARENT=$origin_quic \
  "$here/tests/vm/update.py" "$loader" "$images" "$work/guest" || {
  tail -n 20 "$work/origin.log" >&2
  cp "$work/guest/console.log" "$images/console-$loader.log" && echo "the console's log: $images/console-$loader.log" >&2
  exit 1
}
