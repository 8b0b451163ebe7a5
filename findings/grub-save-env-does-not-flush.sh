#!/usr/bin/env bash
# save_env of GRUB on UEFI writes the environment block and does not flush it: neither GRUB nor the firmware calls
# FlushBlocks afterwards, and the disk is told of it only when the kernel flushes for the first time. An order for one boot
# (next_entry) that GRUB has cleared is thus still there when the power is cut before that: the same entry starts "once"
# again. A kernel that hangs early starts at each power cycle, although the menu clears its order first; a reset, as a
# watchdog does it, loses nothing, because the disk keeps its cache.
# Seen with GRUB 2.06-13+deb12u2, OVMF 2022.11-6+deb12u2 and qemu 7.2.22 of Debian 12, by qemu's record of writes and
# flushes (blklogwrites).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p archives/partial; : >none
# With all that they depend on, whatever this system has.
apt-get -qq -o Dir::State::status="$work/none" -o Dir::Cache::archives="$work/archives" -o Debug::NoLocking=1 \
  install -y --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 \
  ovmf=2022.11-6+deb12u2 grub-common=2.06-13+deb12u2 grub-efi-amd64-bin=2.06-13+deb12u2 mtools dosfstools >/dev/null 2>&1
for deb in archives/*.deb; do
  # Only programs, their libraries and firmware.
  case $deb in *libc6_*|*/perl*|*/gcc-*) ;; *) dpkg-deb -x "$deb" root ;; esac
done
export PATH=$work/root/usr/bin:$work/root/usr/sbin:$work/root/sbin:$PATH
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu

printf 'load_env\nset once=taken\nsave_env once\nsleep 600\n' >grub.cfg
grub-mkimage -d root/usr/lib/grub/x86_64-efi -O x86_64-efi -p /grub -o BOOTX64.EFI fat normal configfile loadenv sleep
grub-editenv grubenv create
mkfs.vfat -C -F 32 disk 65536 >/dev/null
mmd -i disk ::EFI ::EFI/BOOT ::grub
mcopy -i disk BOOTX64.EFI ::EFI/BOOT/; mcopy -i disk grub.cfg grubenv ::grub/
cp root/usr/share/OVMF/OVMF_VARS_4M.fd variables; : >log
qemu-system-x86_64 -L root/usr/share/qemu -L root/usr/share/seabios -nodefaults -display none -machine q35,accel=tcg -m 256 -no-reboot \
  -drive if=pflash,format=raw,readonly=on,file=root/usr/share/OVMF/OVMF_CODE_4M.fd \
  -drive if=pflash,format=raw,file=variables -blockdev driver=file,node-name=file,filename=disk \
  -blockdev driver=file,node-name=log,filename=log -blockdev driver=blklogwrites,node-name=logged,file=file,log=log \
  -blockdev driver=raw,node-name=disk,file=logged -device virtio-blk-pci,drive=disk,bootindex=0,write-cache=on &
trap 'kill -KILL %1 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 150); do ! grep -q once=taken log || break; sleep 1; done
# GRUB sleeps by now. At its own end qemu would flush, so it is killed.
sleep 5
kill -KILL %1; wait %1 || true
python3 - <<'S' | tee seen
import struct
log, at, seen = open("log", "rb").read(), 512, []
while at < len(log):
    sector, count, flags, _ = struct.unpack_from("<QQQQ", log, at)
    if not count and not flags:
        break
    data = log[at + 512:at + 512 + 512 * count]
    kind = "flush" if flags & 1 else "forced write" if flags & 2 else "write"
    seen.append(kind + (" of the block" if b"once=taken" in data else ""))
    at += 512 * (1 + count)
at = seen.index("write of the block")
print(f"{seen[at]}; flushes after it: {seen[at:].count('flush')}")
S
grep -qx 'write of the block; flushes after it: 0' seen
# Seen:
#   write of the block; flushes after it: 0
