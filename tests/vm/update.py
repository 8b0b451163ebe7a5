#!/usr/bin/env python3
"""Updates a virtual machine by distd. The origin runs on the host's loopback; tests/vm/run.sh starts it, pushes the
releases and enrols the device.

    tests/vm/update.py LOADER IMAGES WORK

Needs in the environment: DISTD (the binary), ADMIN (state directory of an administrator), DEVICE (state directory of the
enrolled device), PARENT (HOST:PORT of the origin on the host).
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import disk
from guest import Guest, accelerator

CHANNEL = "os:stable"
BOOT_PATH = {"grub": "/boot/efi/grub/grubenv", "systemd-boot": "/boot/efi"}
# RAUC has names of its own for the slots (files/etc/rauc/system.conf).
SLOTS = {"rauc": ("rootfs.0", "rootfs.1")}
HOST = "10.0.2.2"  # The host's loopback, as the guest sees it.


def admin(*arguments):
    """One object of the command line's JSON."""
    done = subprocess.run([os.environ["DISTD"], "--data", os.environ["ADMIN"], "--json", *arguments], capture_output=True,
                          text=True)
    if done.returncode != 0:
        sys.exit(f"distd {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def device_state(loader, work, follow):
    """The data partition: the state of the device that the host has enrolled, with its settings."""
    data = work / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(os.environ["DEVICE"], data / "device")
    settings = f'parents = ["{HOST}:{os.environ["PARENT"].rpartition(":")[2]}"]\n'
    if follow:
        first, second = SLOTS.get(loader, ("a", "b"))
        settings += f"""
[follow]
channel = "{CHANNEL}"
poll_seconds = 10
slots = ["{first}=/dev/disk/by-partlabel/root-a", "{second}=/dev/disk/by-partlabel/root-b"]
boot_loader = "{loader}"
reboot_command = "systemctl reboot"
"""
        if loader in BOOT_PATH:
            settings += f'boot_path = "{BOOT_PATH[loader]}"\n'
        if loader == "systemd-boot":
            settings += f'kernel = "vmlinuz"\ninitrd = "initrd.img"\nkernel_options = "{disk.OPTIONS}"\n'
    (data / "device/client.toml").write_text(settings)
    (data / "device/client.toml").chmod(0o600)
    return data


def pull(loader, images, work):
    """The guest pulls release 2 into its slot b, over QUIC through qemu's network."""
    disk.make(loader, images / "release-1.img", work / "disk.img", device_state(loader, work, follow=False))
    with Guest(work / "disk.img", work, extra_disks=[images / "release-2.img"]) as guest:
        began = time.monotonic()
        assert guest.wait_up() == ("a", "1")
        up, began = time.monotonic() - began, time.monotonic()
        result = json.loads(guest.run(
            "distd --data /var/lib/distd/device --json -q pull os@2 --transport quic --seed /dev/disk/by-partlabel/root-a"
            " --out /dev/disk/by-partlabel/root-b", seconds=300).splitlines()[-1])
        print(f"  up after {up:.0f} s; {guest.run('systemd-analyze | head -1')}")
        print(f"  pull into slot b: {time.monotonic() - began:.0f} s, {result['wire_bytes']} bytes on the wire,"
              f" transport {result['transport']}")
        guest.run("cmp -n $(blockdev --getsize64 /dev/disk/by-id/virtio-release-2)"
                  " /dev/disk/by-id/virtio-release-2 /dev/disk/by-partlabel/root-b", seconds=120)
        print("  slot b has the bytes of release 2")


def has_slots():
    """Whether this build of distd has back ends for boot loaders."""
    effective = subprocess.run([os.environ["DISTD"], "--data", os.environ["DEVICE"], "agent", "--effective"],
                               capture_output=True, text=True)
    return any(line.startswith("slots =") for line in effective.stdout.splitlines())


def wait_for_rollout(state, seconds):
    """Waits until the newest rollout has a state. Returns it with its failures."""
    deadline = time.monotonic() + seconds
    while (detail := admin("rollout", "status", CHANNEL))["rollout"]["state"] != state:
        assert time.monotonic() < deadline, f"the rollout is not {state}: {detail}"
        time.sleep(2)
    return detail


def begin_rollout(version, seconds):
    """Starts a rollout to the one device. The origin refuses that until it has heard that the device follows."""
    deadline = time.monotonic() + seconds
    command = [os.environ["DISTD"], "--data", os.environ["ADMIN"], "--json", "rollout", "start", CHANNEL, version,
               "--waves", "100%", "--soak", "1s", "--halt-on", "1", "--wait-for-patches", "0"]
    while (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        assert time.monotonic() < deadline, f"no rollout of {version}: {done.stdout}"
        time.sleep(2)


def rollouts(loader, images, work):
    """The agent installs release 2 and stays; it comes back from releases 3, 4 and 5, and says why."""
    disk.make(loader, images / "release-1.img", work / "disk.img", device_state(loader, work, follow=True))
    with Guest(work / "disk.img", work) as guest:
        patience = 300 * guest.patience
        began = time.monotonic()
        assert guest.wait_up() == ("a", "1")
        # The factory wrote slot a without distd, so the agent installs the release of the channel into the other one.
        found = guest.wait_up(300)
        assert found == ("b", "1"), f"slot {found[0]} with release {found[1]} came up; the first update failed"
        print(f"  release 1 in slot b after {time.monotonic() - began:.0f} s", flush=True)

        began = time.monotonic()
        begin_rollout("2", patience)
        found = guest.wait_up(300)
        assert found == ("a", "2"), found
        wait_for_rollout("complete", patience)
        print(f"  release 2: complete after {time.monotonic() - began:.0f} s", flush=True)
        for version, sign, kind in (("3", "vm-panic", "boot"), ("4", "vm-hang", "boot"),
                                    ("5", "vm-up slot=b release=5", "health")):
            began = time.monotonic()
            begin_rollout(version, patience)
            guest.wait_console(sign, 300)
            found = guest.wait_up(300)
            assert found == ("a", "2"), found
            detail = wait_for_rollout("halted", patience)
            reasons = [f"{failure['kind']}: {failure['detail']}" for failure in detail["failures"]]
            print(f"  release {version}: back on 2, halted after {time.monotonic() - began:.0f} s; {reasons};"
                  f" {detail['rollout']['reason']}", flush=True)
            assert [failure["kind"] for failure in detail["failures"]] == [kind], detail["failures"]
        guest.power_cut()
        guest.power_on()
        assert guest.wait_up() == ("a", "2")
        print("  after a power cut: slot a, release 2")


def main(loader, images, work):
    images, work = pathlib.Path(images), pathlib.Path(work)
    work.mkdir(parents=True, exist_ok=True)
    print(f"{loader}, {accelerator()}", flush=True)
    pull(loader, images, work)
    if has_slots():
        rollouts(loader, images, work)
    else:
        print("  skipped: rollouts by the agent; this build of distd has no boot slots")


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in disk.LOADERS:
        sys.exit(__doc__)
    main(*sys.argv[1:])
