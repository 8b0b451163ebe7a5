# Makes small disks and file systems: disks.sh DIR. Needs dosfstools, mtools, gdisk, e2fsprogs and binutils.
set -eu
PATH=$PATH:/usr/sbin:/sbin
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

mkdir -p tree/usr
seq 300 >tree/usr/numbers
seq 1000 1400 >tree/other
printf '.globl _start\n_start: ret\n' >s.s
as -o s.o s.s
objcopy -O pe-x86-64 s.o p.o
ld -m i386pep --subsystem 10 -e _start -o stub.efi p.o
gzip -nc tree/other >initrd
objcopy --add-section .linux=tree/usr/numbers --change-section-vma .linux=0x150000000 \
  --set-section-flags .linux=contents,alloc,load,readonly,data --add-section .initrd=initrd \
  --change-section-vma .initrd=0x160000000 --set-section-flags .initrd=contents,alloc,load,readonly,data \
  stub.efi uki.efi

fat() { # IMAGE KIB
  truncate -s "$2K" "$1"
  mkfs.vfat -F 12 -s 1 -i 12345678 "$1" >/dev/null
  mcopy -i "$1" tree/other ::first
  mmd -i "$1" ::EFI
  mcopy -i "$1" uki.efi "::EFI/a long name.efi"
  mdel -i "$1" ::first
  mcopy -i "$1" uki.efi ::fragments.efi
}
fat esp 64
mke2fs -q -t ext4 -O ^has_journal,inline_data -N 32 -b 1024 -U clear -E hash_seed=11111111-2222-3333-4444-555555555555,no_copy_xattrs -d tree ext4 128k
mke2fs -q -t ext2 -N 32 -b 1024 -U clear -d tree ext2 96k
truncate -s 112K gpt
sgdisk -a 1 -U 11111111-2222-3333-4444-555555555555 -n 1:34:+127 -t 1:ef00 -u 1:11111111-2222-3333-4444-000000000001 gpt >/dev/null
dd if=esp of=gpt bs=512 seek=34 conv=notrunc status=none
truncate -s 80K mbr
printf 'label: dos\ngrain: 512\nstart=8, size=140, type=5\nstart=10, size=20, type=c\nstart=32, size=60, type=83\n' | sfdisk -q mbr

cp uki.efi "$out/uki"
cp esp "$out/fat12"
cp ext4 "$out/ext4"
cp ext2 "$out/ext2"
cp gpt "$out/disk-gpt"
cp mbr "$out/disk-mbr"
