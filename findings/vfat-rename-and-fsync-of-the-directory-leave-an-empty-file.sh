#!/usr/bin/env bash
# The usual way to replace a file durably is: write a new file, fsync it, rename it, fsync the directory. On FAT, Linux
# gives the renamed file a new directory entry without length and first cluster, and writes these two with the inode, some
# 30 s later. fsync of the directory makes the empty entry durable, and the removal of the old one: after a power cut in
# that time the file has 0 bytes, and its clusters are lost. fsync of the renamed file, before that of the directory,
# helps. Whoever changes an EFI system partition (entries of a boot loader, kernels) has to do so.
# Seen with Linux 6.1.192-3 of Debian 12 in qemu 7.2.22, which is ended by SIGKILL.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p archives/partial initrd/{bin,drivers,proc,dev,mnt}; : >none
apt-get -qq -o Dir::State::status="$work/none" -o Dir::Cache::archives="$work/archives" -o Debug::NoLocking=1 \
  install -y --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 mtools dosfstools cpio \
  >/dev/null 2>&1
(cd archives && apt-get download -qq linux-image-6.1.0-57-cloud-amd64=6.1.192-3 busybox-static=1:1.35.0-4+deb12u1+b1) >/dev/null 2>&1
for deb in archives/*.deb; do
  case $deb in *libc6_*|*/perl*|*/gcc-*) ;; *) dpkg-deb -x "$deb" root ;; esac
done
export PATH=$work/root/usr/bin:$work/root/usr/sbin:$work/root/sbin:$work/root/bin:$PATH
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu

cp root/bin/busybox initrd/bin/
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk fat vfat nls_ascii nls_cp437"
for module in $modules; do cp "$(find root/lib/modules -name "$module.ko")" initrd/drivers/; done
cat >initrd/init <<S
#!/bin/busybox sh
for m in $modules; do /bin/busybox insmod /drivers/\$m.ko; done
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t vfat -o iocharset=ascii /dev/vda /mnt
cd /mnt
for name in directory both; do
  echo bytes >\$name.part
  /bin/busybox sync \$name.part
done
/bin/busybox sync
/bin/busybox mv directory.part directory.txt
/bin/busybox sync .
/bin/busybox mv both.part both.txt
/bin/busybox sync both.txt
/bin/busybox sync .
echo renamed
/bin/busybox sleep 600
S
chmod 755 initrd/init
(cd initrd && find . | cpio --quiet -o -H newc) >initrd.img
mkfs.vfat -C -F 32 disk 65536 >/dev/null
qemu-system-x86_64 -L root/usr/share/qemu -L root/usr/share/seabios -nodefaults -display none -machine q35,accel=tcg -m 256 \
  -kernel root/boot/vmlinuz-* -initrd initrd.img -append "console=ttyS0 loglevel=3" -serial file:console \
  -drive file=disk,format=raw,if=virtio >/dev/null 2>&1 &
trap 'kill -KILL %1 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 150); do ! grep -q renamed console 2>/dev/null || break; sleep 1; done
kill -KILL %1; wait %1 2>/dev/null || true
for name in directory both; do echo "$name.txt: $(mtype -i disk "::$name.txt" | wc -c) bytes"; done | tee seen
diff seen - <<'S'
directory.txt: 0 bytes
both.txt: 6 bytes
S
# Seen:
#   directory.txt: 0 bytes
#   both.txt: 6 bytes
