#!/usr/bin/env bash
# Root images of a Debian 12 that boots in a virtual machine: releases 1 to 5 as ext4, all made from one tree, so that
# each differs from the others by a few files.
#
#   tests/vm/image.sh DISTD OUT      DISTD: the binary that goes to /usr/local/bin; OUT: a directory, 3 GB
#
#   OUT/release-1.img   works
#   OUT/release-2.img   works, too
#   OUT/release-3.img   panics: its init ends at once
#   OUT/release-4.img   hangs after systemd has started; only the watchdog ends it
#   OUT/release-5.img   boots, but its application fails, and so does the hook `health`
#
# Needs root. The base system is downloaded once and kept as OUT/base-KEY.tar, until this script or the initrd changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
distd=$(realpath "$1"); out=$(realpath "$2")
# Times and identifiers in the images, so that they say nothing about the build.
epoch=1700000000
uuid=d157d000-0000-4000-8000-000000000001

# Only these drivers of the ordinary kernel are kept: all of them are 350 MB, and the small cloud kernel has no driver of
# a watchdog but softdog, which a hanging kernel takes with it.
drivers=(drivers/virtio/virtio drivers/block/virtio_blk.ko drivers/net/virtio_net.ko drivers/net/net_failover.ko
  drivers/char/virtio_console.ko drivers/char/hw_random/virtio-rng.ko drivers/watchdog/watchdog.ko
  drivers/watchdog/i6300esb.ko net/core/failover.ko fs/autofs fs/ext4 fs/jbd2 fs/mbcache.ko fs/fat fs/nls/nls_ascii.ko
  fs/nls/nls_cp437.ko fs/nls/nls_utf8.ko fs/efivarfs fs/squashfs fs/erofs lib crypto arch/x86/crypto/crc)

make_base() {
  local keep=() driver
  for driver in "${drivers[@]}"; do
    keep+=("--dpkgopt=path-include=/lib/modules/*/kernel/$driver*")
  done
  # The initrd is made with our settings when the kernel is installed.
  SOURCE_DATE_EPOCH=$epoch mmdebstrap --quiet --mode=root --format=tar --variant=essential \
    --include=systemd-sysv,udev,kmod,linux-image-amd64,initramfs-tools,zstd,systemd-boot,grub2-common,e2fsprogs,dosfstools,iproute2,procps,rauc-service \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/lib/modules/*/kernel/*' "${keep[@]}" \
    --essential-hook="tar -C '$here/files' -c etc/initramfs-tools | tar -C \"\$1\" -x --no-same-owner" \
    bookworm "$base.new" - <<S
deb http://deb.debian.org/debian bookworm main
deb http://deb.debian.org/debian bookworm-updates main
deb http://deb.debian.org/debian-security bookworm-security main
S
  mv "$base.new" "$base"
}

# mask UNIT...: units that need a writable root, or would do the agent's work.
mask() { local unit; for unit; do ln -sf /dev/null "$tree/etc/systemd/system/$unit"; done; }

# The tree of release 1.
prepare() {
  tar -C "$tree" -xf "$base"
  tar -C "$here/files" -c --owner=0 --group=0 . | tar -C "$tree" -x --no-overwrite-dir
  strip -o "$tree/usr/local/bin/distd" "$distd"
  mkdir -p "$tree/var/lib/distd" "$tree/boot/efi"
  rm -rf "$tree"/var/cache/* "$tree"/var/log/* "$tree"/var/lib/apt/lists/* "$tree"/{vmlinuz,initrd.img}.old
  echo device >"$tree/etc/hostname"
  # Empty, so that each boot has an identifier of its own, in memory.
  : >"$tree/etc/machine-id"
  rm -f "$tree/var/lib/dbus/machine-id"
  # The agent says when a boot was good. This unit would say so as soon as the basic system is up.
  mask systemd-bless-boot.service
  mask systemd-random-seed.service systemd-boot-update.service systemd-firstboot.service systemd-pstore.service
  mask e2scrub_reap.service e2scrub_all.timer fstrim.timer dpkg-db-backup.timer getty@tty1.service
  # Mounts that nothing here needs cost seconds where the machine is emulated.
  mask dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount
  systemctl --root "$tree" --quiet enable systemd-networkd distd-agent app vm-shell
}

# release NUMBER: makes the image of the tree as it is.
release() {
  local image=$out/release-$1.img
  echo "$1" >"$tree/etc/release-number"
  find "$tree" -newermt "@$epoch" -exec touch --no-dereference --date="@$epoch" {} +
  rm -f "$image"
  # Without a journal a slot that is mounted read-only is never written. GRUB 2.06 and the kernel read these features.
  # Both slots have one UUID, so everything names slots by the names of their partitions.
  E2FSPROGS_FAKE_TIME=$epoch mke2fs -q -t ext4 -O '^has_journal,^metadata_csum_seed,^orphan_file,^resize_inode' \
    -U "$uuid" -E "hash_seed=$uuid,lazy_itable_init=0,root_owner=0:0" -L root -m 0 -d "$tree" "$image" "$image_size"
  echo "$image"
}

image_size=320M
mkdir -p "$out"
base=$out/base-$(cd "$here" && cat image.sh $(find files/etc/initramfs-tools -type f | sort) | sha256sum | cut -c 1-12).tar
[ -e "$base" ] || { rm -f "$out"/base-*.tar; make_base; }
# Times of reading must not change while the images are made, so the tree is in memory.
tree=$out/tree
mkdir -p "$tree"
mount -t tmpfs -o noatime,mode=755 tree "$tree"
trap 'umount "$tree"; rmdir "$tree"' EXIT

prepare
release 1
# The change is some new code, as far as the transfer is concerned.
python3 -c 'import random, sys; random.seed(2); sys.stdout.buffer.write(random.randbytes(2_000_000))' >"$tree/usr/local/bin/app.data"
release 2
mv "$tree/sbin/init" "$tree/sbin/init.works"
printf '#!/bin/sh\necho vm-panic\nexit 1\n' >"$tree/usr/sbin/init"
chmod 755 "$tree/usr/sbin/init"
release 3
rm "$tree/usr/sbin/init"; mv "$tree/usr/sbin/init.works" "$tree/usr/sbin/init"
systemctl --root "$tree" --quiet enable hang
release 4
systemctl --root "$tree" --quiet disable hang
printf '#!/bin/sh\nexit 1\n' >"$tree/usr/local/bin/app"
release 5
