#!/usr/bin/env bash
# Root images for thousands of boots in an emulated machine: Debian's cloud kernel, a small initrd, a script as process 1,
# and the agent. Releases 1, 2 and 5 as ext4, made from one tree.
#
#   tests/vm/lean.sh DISTD OUT      DISTD: the binary that goes to OUT/tools.img; OUT: a directory, 300 MB
#
#   OUT/release-1.img   works
#   OUT/release-2.img   works, too; 2 MB of it are new
#   OUT/release-5.img   boots, but the hook `health` fails
#   OUT/tools.img       the agent, in a partition of its own: what a boot costs here is the size of a release
#
# Needs root. The packages are downloaded once and kept as OUT/packages-KEY.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
distd=$(realpath "$1"); mkdir -p "$2"; out=$(realpath "$2")
epoch=1700000000
uuid=d157d000-0000-4000-8000-000000000002

key=$(sed -n '/^fetch()/,/^}/p' "$here/lean.sh" | sha256sum | cut -c 1-12)
packages=$out/packages-$key
fetch() {
  # Nothing is configured, and no script of a package runs: files are taken out of what is unpacked.
  mmdebstrap --quiet --mode=root --variant=extract \
    --include=linux-image-cloud-amd64,busybox-static,dash,coreutils,sed,grep,util-linux,mount,e2fsprogs,dosfstools,libgcc-s1 \
    --dpkgopt='path-exclude=/usr/share/*' bookworm "$packages.new" - <<S
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
S
  mv "$packages.new" "$packages"
}
[ -e "$packages" ] || { rm -rf "$out"/packages-*; fetch; }

tree=$out/tree tools=$out/tools
rm -rf "$tree" "$tools"
mkdir -p "$tools" "$tree"/{proc,sys,dev,run,tmp,etc/distd/hooks.d,boot/efi,var/lib/distd,opt,usr/bin,usr/sbin,usr/lib/modules,usr/lib64}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$tree/$name"; done
kernel=$(cd "$packages/lib/modules" && echo *)

# take COMMAND...: copies programs of the packages, with the libraries that they need.
take() {
  local program found library
  for program; do
    found=$(find "$packages"/{usr/,}{bin,sbin} -maxdepth 1 -name "$program" -print -quit 2>/dev/null)
    cp -L "$found" "$tree/usr/bin/"
  done
  for program in "$tree"/usr/bin/*; do
    for library in $(chroot "$packages" /lib64/ld-linux-x86-64.so.2 --list "/new/${program##*/}" 2>/dev/null | grep -o '/[^ ]*'); do
      case $library in
        */ld-linux*) cp -L "$packages$library" "$tree/usr/lib64/" ;;
        /new/*) ;;
        *) mkdir -p "$tree/usr/lib/x86_64-linux-gnu"; cp -L "$packages$library" "$tree/usr/lib/x86_64-linux-gnu/" ;;
      esac
    done
  done
}
mkdir -p "$packages/new"
mount --bind "$tree/usr/bin" "$packages/new"
trap 'umount "$packages/new"' EXIT
strip -o "$tools/distd" "$distd"
cp "$tools/distd" "$tree/usr/bin/"  # For its libraries.
take dash cat readlink sync sleep mkdir ln rm sed mount umount unshare e2fsck fsck.fat busybox
mv "$tree/usr/bin/dash" "$tree/usr/bin/sh"
rm "$tree/usr/bin/distd"

# drivers FILE DIRECTORY MODULE...: copies modules with all they need, and lists them in the order of loading.
[ -e "$packages/lib/modules/$kernel/modules.dep" ] || depmod -b "$packages" "$kernel"
drivers() {
  local list=$1 place=$2 root=$3 module path; shift 3
  for module; do
    # Modules that are part of the kernel are no files.
    modprobe --show-depends -d "$packages" -S "$kernel" "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
  done | awk '!seen[$0]++' | while read -r path; do
    cp "$path" "$root$place/"
    echo "$place/${path##*/}"
  done >"$list"
}
drivers "$tree/usr/lib/modules/later" /lib/modules "$tree" virtio_net vfat nls_ascii nls_cp437 nls_utf8
small=$out/initrd
rm -rf "$small"
mkdir -p "$small"/{bin,proc,sys,dev,root,drivers}
cp "$packages/bin/busybox" "$small/bin/"
install -m 755 "$here/lean/initrd" "$small/init"
drivers "$small/modules" /drivers "$small" virtio_pci virtio_blk
# What the initrd has loaded is not loaded again.
grep -vFf <(sed 's|.*/||' "$small/modules") "$tree/usr/lib/modules/later" >"$out/later" && mv "$out/later" "$tree/usr/lib/modules/later"
find "$small" -exec touch --no-dereference --date="@$epoch" {} +
(cd "$small" && find . | sort | cpio --quiet --reproducible -o -H newc) >"$tree/initrd.img"
cp "$packages"/boot/vmlinuz-* "$tree/vmlinuz"

install -m 755 "$here/lean/init" "$tree/usr/sbin/init"
# The program that the agent restarts the system with.
printf '#!/bin/sh\nkill -USR1 1\n' >"$tree/usr/sbin/restart"
printf '#!/bin/sh\n[ ! -e /etc/sick ]\n' >"$tree/etc/distd/hooks.d/health"
printf '#!/bin/sh\necho lean-activate >/dev/console\n' >"$tree/etc/distd/hooks.d/activate"
chmod 755 "$tree/usr/sbin/restart" "$tree"/etc/distd/hooks.d/*
ln -s /run "$tree/var/run"
echo "root:x:0:0:root:/root:/bin/sh" >"$tree/etc/passwd"

# release NUMBER SEED: makes the image of the tree as it is.
release() {
  local image=$out/release-$1.img
  echo "$1" >"$tree/etc/release-number"
  python3 -c 'import random, sys; random.seed(int(sys.argv[1])); sys.stdout.buffer.write(random.randbytes(2_000_000))' "$1" >"$tree/usr/bin/app.data"
  find "$tree" -exec touch --no-dereference --date="@$epoch" {} +
  rm -f "$image"
  E2FSPROGS_FAKE_TIME=$epoch mke2fs -q -t ext4 -O '^has_journal,^metadata_csum_seed,^orphan_file,^resize_inode' \
    -U "$uuid" -E "hash_seed=$uuid,lazy_itable_init=0,root_owner=0:0" -L root -m 0 -d "$tree" -b 4096 -N 256 "$image" 30M
  echo "$image"
}
release 1
release 2
: >"$tree/etc/sick"
release 5
rm -f "$out/tools.img"
E2FSPROGS_FAKE_TIME=$epoch mke2fs -q -t ext4 -O '^has_journal' -U "$uuid" -m 0 -d "$tools" "$out/tools.img" 47M
rm -rf "$tree" "$tools" "$small"
