#!/usr/bin/env bash
# The superblock of ext4 has 1024 bytes, two sectors of 512, and the kernel rewrites it in place, outside of the journal,
# at each mount and unmount. A power cut can leave one new sector and one old one. Since mke2fs turns on metadata_csum,
# such a superblock has a wrong checksum: the kernel refuses to mount ("invalid superblock checksum"), although nothing
# but a time differs, and so does "e2fsck -p", which systems run at boot: it ends with status 8 and looks at no backup.
# "e2fsck -y" (fsck.repair=yes for systemd) takes a backup and repairs. Without metadata_csum the same tear does no harm.
# Seen with e2fsprogs 1.47.0-2+b2 of Debian 12, and, for the mount, with Linux 6.1.192.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq e2fsprogs=1.47.0-2+b2 libext2fs2=1.47.0-2+b2 libss2=1.47.0-2+b2 libcom-err2=1.47.0-2+b2 \
  libblkid1=2.38.1-5+deb12u3 libuuid1=2.38.1-5+deb12u3 >/dev/null 2>&1
for deb in *.deb; do dpkg-deb -x "$deb" root; done
export LD_LIBRARY_PATH=$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu PATH=$work/root/sbin:$PATH
# torn NAME OPTIONS...: a file system whose first half of the superblock is newer than the second.
torn() {
  local name=$1; shift
  mke2fs -q -t ext4 "$@" "$name" 32M >/dev/null
  cp "$name" old
  debugfs -w -R "set_super_value lastcheck 20300101000000" "$name" 2>/dev/null
  dd if=old of="$name" bs=512 skip=3 seek=3 count=1 conv=notrunc status=none
}
check() { local status=0; e2fsck "$@" >output 2>&1 || status=$?; echo "e2fsck $*: status $status"; }
torn with && torn without -O ^metadata_csum
{ check -p with; check -y with; check -p with; check -p without; } | tee seen
diff seen - <<'S'
e2fsck -p with: status 8
e2fsck -y with: status 1
e2fsck -p with: status 0
e2fsck -p without: status 0
S
# Seen:
#   e2fsck -p with: status 8
#   e2fsck -y with: status 1
#   e2fsck -p with: status 0
#   e2fsck -p without: status 0
