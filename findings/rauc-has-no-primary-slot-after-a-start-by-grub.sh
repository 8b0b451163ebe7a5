#!/usr/bin/env bash
# RAUC's menu script for GRUB gives a slot one try: it sets SLOT_TRY=1 when it starts the slot, and "good" clears that. The
# service counts a slot without a try as one that cannot start. So on a device that has just started, with a second slot
# that is not good (empty, or marked bad before it is written), the D-Bus method GetPrimary does not name the slot that
# runs, but fails, until somebody has marked it good. A program that updates slots has to take this error as "the slot that
# runs is not confirmed yet", not as a service that does not work.
# Seen with rauc 1.8-2 and grub-common 2.06-13+deb12u2 of Debian 12.
set -euo pipefail
work=$(mktemp -d); pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
mkdir -p archives/partial; : >none
apt-get -qq -o Dir::State::status="$work/none" -o Dir::Cache::archives="$work/archives" -o Debug::NoLocking=1 \
  install -y --download-only --no-install-recommends rauc=1.8-2 grub-common=2.06-13+deb12u2 dbus-daemon=1.14.10-1~deb12u1 \
  dbus-bin=1.14.10-1~deb12u1 >/dev/null 2>&1
for deb in archives/*.deb; do
  case $deb in *libc6_*|*/perl*|*/gcc-*) ;; *) dpkg-deb -x "$deb" root ;; esac
done
export PATH=$work/root/usr/bin:$PATH LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu

cat >bus.conf <<S
<busconfig><type>system</type><listen>unix:path=$work/bus</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
S
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$work/bus
dbus-daemon --config-file=bus.conf --nofork --nopidfile & pids+=($!)
: >one; : >two
cat >system.conf <<S
[system]
compatible=device
bootloader=grub
grubenv=$work/grubenv
statusfile=$work/status
[slot.rootfs.0]
device=$work/one
bootname=A
[slot.rootfs.1]
device=$work/two
bootname=B
S
grub-editenv grubenv create
grub-editenv grubenv set "ORDER=A B" A_OK=1 A_TRY=0 B_OK=0 B_TRY=0
until [ -e bus ]; do sleep 0.1; done
rauc --conf=system.conf --override-boot-slot=A service >service.log 2>&1 & pids+=($!)
call() { dbus-send --system --print-reply=literal --dest=de.pengutronix.rauc / "de.pengutronix.rauc.Installer.$@" 2>&1; }
for _ in $(seq 100); do ! call GetPrimary >/dev/null || break; sleep 0.1; done
primary() { call GetPrimary | sed 's/^ *//; s/.*Failed/Failed/'; }
{
  echo "before its start: $(primary)"
  # What the menu script does when it starts slot A.
  grub-editenv grubenv set A_TRY=1
  echo "started: $(primary)"
  call Mark string:good string:booted >/dev/null
  echo "marked good: $(primary)"
} | tee seen
grep -qx 'before its start: rootfs.0' seen
grep -q '^started: Failed getting primary slot' seen
grep -qx 'marked good: rootfs.0' seen
# Seen:
#   before its start: rootfs.0
#   started: Failed getting primary slot: grub backend: No bootable slot found in ORDER 'A B'
#   marked good: rootfs.0
