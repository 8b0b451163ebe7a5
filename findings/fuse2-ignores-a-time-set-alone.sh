#!/usr/bin/env bash
# A file system on libfuse 2 (here exFAT, the driver of many appliances) reports success for setting a file's modification
# time and does nothing, when the access time is left as it is (UTIME_OMIT). `touch -m`, rsync and most tools that install
# files do exactly this. Setting both times together works. A tool that restores times and compares them later therefore
# takes every file for edited.
# Seen with exfat-fuse 1.3.0+git20220115-2 and libfuse2 2.9.9-6+b1 of Debian 12. Needs root, /dev/fuse and a loop device.
set -euo pipefail
[ "$(id -u)" = 0 ] && [ -e /dev/fuse ] || { echo "skipped: needs root and /dev/fuse"; exit 0; }
work=$(mktemp -d); loop=
clean() {
  mountpoint -q "$work/mnt" && umount "$work/mnt"
  [ -z "$loop" ] || losetup -d "$loop" 2>/dev/null || true
  rm -rf "$work"
}
trap clean EXIT
cd "$work"
apt-get download -qq exfat-fuse=1.3.0+git20220115-2 libfuse2=2.9.9-6+b1 exfatprogs=1.2.0-1+deb12u1 >/dev/null 2>&1
for deb in *.deb; do dpkg-deb -x "$deb" root; done
export LD_LIBRARY_PATH=$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu
truncate -s 64M image
root/usr/sbin/mkfs.exfat image >/dev/null
loop=$(losetup -f --show image)
mkdir mnt
root/sbin/mount.exfat-fuse "$loop" mnt >/dev/null 2>&1
echo x >mnt/file
touch -m -d '2020-01-01 00:00:00 UTC' mnt/file && echo "touch -m: exit 0"
alone=$(stat -c %Y mnt/file)
touch -d '2020-01-01 00:00:00 UTC' mnt/file
both=$(stat -c %Y mnt/file)
echo "modification time set alone: $([ "$alone" = 1577836800 ] && echo set || echo unchanged)"
echo "with the access time: $([ "$both" = 1577836800 ] && echo set || echo unchanged)"
[ "$alone" != 1577836800 ] && [ "$both" = 1577836800 ]
# Seen:
#   touch -m: exit 0
#   modification time set alone: unchanged
#   with the access time: set
