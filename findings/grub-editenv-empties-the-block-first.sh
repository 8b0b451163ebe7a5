#!/usr/bin/env bash
# GRUB itself rewrites its environment block in place, in the sectors that the file has. grub-editenv, and with it
# grub-reboot and grub-set-default, does not: it opens the file with O_TRUNC and writes 1024 bytes into it anew. A power
# cut between the two leaves an empty file, which is no environment block: GRUB then knows neither saved_entry nor
# next_entry. An updater that wants one of two values after a power cut has to write the block by itself, in place.
# Seen with grub-common 2.06-13+deb12u2 of Debian 12, under strace 6.1-0.1. Needs the right to trace.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq grub-common=2.06-13+deb12u2 libdevmapper1.02.1=2:1.02.185-2 libselinux1=3.4-1+b6 strace=6.1-0.1 \
  libunwind8=1.6.2-3 >/dev/null 2>&1
for deb in *.deb; do dpkg-deb -x "$deb" root; done
export LD_LIBRARY_PATH=$work/root/lib/x86_64-linux-gnu:$work/root/usr/lib/x86_64-linux-gnu
root/usr/bin/strace true 2>/dev/null || { echo "skipped: strace cannot trace here"; exit 0; }
root/usr/bin/grub-editenv block create
root/usr/bin/strace -o calls -e trace=openat,write,pwrite64 root/usr/bin/grub-editenv block set saved_entry=a
grep '"block"' calls | tail -n 1 | sed 's/ *= .*//'
grep -o '1024) *= 1024' calls | tail -n 1
grep '"block"' calls | tail -n 1 | grep -q O_TRUNC && grep -q '^write(.*1024) *= 1024' calls
# Seen:
#   openat(AT_FDCWD, "block", O_WRONLY|O_CREAT|O_TRUNC, 0666)
#   1024) = 1024
