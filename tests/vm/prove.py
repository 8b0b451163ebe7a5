#!/usr/bin/env python3
"""Proves without the agent that a boot loader boots the other slot once, that it stays there only when told, and that a
release that panics, hangs or is sick ends on the old slot.

    tests/vm/prove.py LOADER IMAGES WORK     LOADER: systemd-boot or grub; IMAGES: from image.sh; WORK: a directory, 2 GB
"""
import pathlib
import sys
import time

import disk
from guest import Guest, accelerator

ENTRIES = "/boot/efi/loader/entries"


class Grub:
    """What grub-reboot and grub-set-default do, with the environment block on the ESP."""

    def boot_once(self, guest, slot, version):
        guest.run(f"grub-editenv /boot/efi/grub/grubenv set next_entry={slot} && sync -f /boot/efi")

    def confirm(self, guest, slot):
        guest.run(f"grub-editenv /boot/efi/grub/grubenv set saved_entry={slot} && sync -f /boot/efi")

    def state(self, guest):
        return guest.run("grub-editenv /boot/efi/grub/grubenv list").replace("\n", " ")


class SystemdBoot:
    """An entry with one try, whose name loses the counter when the boot was good."""

    def boot_once(self, guest, slot, version):
        entry = disk.systemd_boot_entry(slot, version)
        # The old entry of the slot goes first: its kernel is replaced.
        guest.run(f"""set -e
            rm -f {ENTRIES}/distd-{slot}.conf {ENTRIES}/distd-{slot}+*.conf
            mkdir -p /boot/efi/distd/{slot} /tmp/slot
            mount -o ro /dev/disk/by-partlabel/root-{slot} /tmp/slot
            cp -L /tmp/slot/vmlinuz /tmp/slot/initrd.img /boot/efi/distd/{slot}/
            umount /tmp/slot
            cat >/boot/efi/loader/new <<'ENTRY'\n{entry}ENTRY
            sync -f /boot/efi
            mv /boot/efi/loader/new {ENTRIES}/distd-{slot}+1.conf
            sync -f /boot/efi""")

    def confirm(self, guest, slot):
        guest.run(f"mv {ENTRIES}/distd-{slot}+0-1.conf {ENTRIES}/distd-{slot}.conf && sync -f /boot/efi")

    def state(self, guest):
        return guest.run(f"ls {ENTRIES}").replace("\n", " ")


LOADERS = {"grub": Grub(), "systemd-boot": SystemdBoot()}


class Proof:
    def __init__(self, loader, guest):
        self.loader, self.guest = loader, guest
        self.began = self.last = time.monotonic()

    def expect(self, slot, release, what):
        found = self.guest.wait_up()
        now = time.monotonic()
        print(f"{now - self.began:6.0f} s (+{now - self.last:.0f})  {what}: slot {found[0]}, release {found[1]};"
              f" {self.loader.state(self.guest)}", flush=True)
        self.last = now
        assert found == (slot, release), f"slot {slot} with release {release} was to boot"

    def install(self, slot, release, version):
        """Writes a release into a slot that does not run, and lets the loader boot it once."""
        self.guest.run(f"dd if=/dev/disk/by-id/virtio-release-{release} of=/dev/disk/by-partlabel/root-{slot} bs=1M"
                       " conv=fsync status=none", seconds=120)
        self.loader.boot_once(self.guest, slot, version)

    def reboot(self):
        self.guest.run("systemctl reboot", answer=False)


def prove(name, images, work):
    images, work = pathlib.Path(images), pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    disk.make(name, images / "release-1.img", work / "disk.img")
    print(f"{name}, {accelerator()}", flush=True)
    releases = [images / f"release-{number}.img" for number in (2, 3, 4, 5)]
    with Guest(work / "disk.img", work, extra_disks=releases) as guest:
        proof = Proof(LOADERS[name], guest)
        proof.expect("a", "1", "first boot")

        proof.install("b", "2", version=2)
        proof.reboot()
        proof.expect("b", "2", "the new release boots once")
        guest.power_cut()
        guest.power_on()
        proof.expect("a", "1", "not confirmed, power cut: the old one comes back")

        proof.loader.boot_once(guest, "b", version=2)
        proof.reboot()
        proof.expect("b", "2", "once more")
        proof.loader.confirm(guest, "b")
        guest.power_cut()
        guest.power_on()
        proof.expect("b", "2", "confirmed, power cut: it stays")

        proof.install("a", "3", version=3)
        proof.reboot()
        guest.wait_console("vm-panic")
        guest.wait_console("Kernel panic")
        proof.expect("b", "2", "after a panic the old one comes back")

        proof.install("a", "4", version=4)
        began = time.time()
        proof.reboot()
        guest.wait_console("vm-hang")
        hung = time.time()
        at, _ = guest.wait_event("WATCHDOG", since=began)
        print(f"          the watchdog ended the hang after {at - hung:.0f} s", flush=True)
        proof.expect("b", "2", "after a hang the old one comes back")

        proof.install("a", "5", version=5)
        proof.reboot()
        proof.expect("a", "5", "a sick release boots")
        health = guest.run("/etc/distd/hooks.d/health", check=False)
        assert health != "active", health
        proof.reboot()
        proof.expect("b", "2", f"its check said {health!r}; the old one comes back")
        guest.run("systemctl poweroff", answer=False)
        guest.wait_event("SHUTDOWN", since=began)
    print(f"{name}: proven in {time.monotonic() - proof.began:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in LOADERS:
        sys.exit(__doc__)
    prove(*sys.argv[1:])
