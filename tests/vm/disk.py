#!/usr/bin/env python3
"""Disk images with two root slots, and a boot loader that boots slot a.

    tests/vm/disk.py LOADER RELEASE.img OUT.img [DATA]     LOADER: systemd-boot, grub, or rauc, which decides for GRUB

Partitions: `esp`, `root-a` with the release, `root-b` empty, `data` with the files of the directory DATA.
Nothing is mounted, and root is not needed.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

MIB = 1 << 20
# Start and size of each partition, MiB. A slot is somewhat larger than the image of a release.
LAYOUT = {"esp": (1, 128), "root-a": (129, 448), "root-b": (577, 448), "data": (1025, 768)}
# The layout of the lean images; `tools` has the agent, so that a release is small.
LEAN_LAYOUT = {"esp": (1, 64), "root-a": (65, 31), "root-b": (96, 31), "data": (127, 32), "tools": (159, 48)}
# A panic restarts the machine after 5 s; any kernel oops is a panic. The slots are known by the names of their
# partitions: their file systems have one UUID. The generator for partitions found by type would mount what we mount.
# Mitigations of processor flaws only cost time here.
OPTIONS = ("root=PARTLABEL=root-{slot} rootfstype=ext4 ro distd.slot={slot} console=ttyS0,115200 panic=5 oops=panic "
           "fsck.repair=yes systemd.gpt_auto=0 mitigations=off loglevel=5 systemd.show_status=0")
SYSTEMD_BOOT = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
# The options of the lean images, whose initrd finds the partition itself.
LEAN_OPTIONS = ("distd.slot={slot} console=ttyS0,115200 panic=5 oops=panic mitigations=off loglevel=4 "
                "nokaslr cryptomgr.notests")
GRUB_MODULES = ("part_gpt fat ext2 squash4 normal linux configfile loadenv test regexp search echo reboot sleep serial "
                "terminal gzio minicmd").split()

GRUB_START = """\
serial --unit=0 --speed=115200
terminal_output serial
load_env
"""
# The menu of docs/slots.md: an order that cannot be cleared is not followed.
GRUB_CHOICE = """\
set default="${saved_entry}"
if [ "${next_entry}" ]; then
  set once="${next_entry}"; set next_entry=
  if save_env next_entry; then set default="$once"; fi
fi
"""
# RAUC's variables: the order of the slots, whether each is good, and whether it has had its one try since RAUC was told
# so. A menu without a slot left tries the good ones again.
RAUC_CHOICE = """\
set default=
for slot in $ORDER; do
  if [ -z "$default" -a "$slot" = A -a "$A_OK" = 1 -a "$A_TRY" = 0 ]; then set default=a; set A_TRY=1; fi
  if [ -z "$default" -a "$slot" = B -a "$B_OK" = 1 -a "$B_TRY" = 0 ]; then set default=b; set B_TRY=1; fi
done
if [ -z "$default" ]; then
  set A_TRY=0; set B_TRY=0
  if [ "$A_OK" = 1 ]; then set default=a; else set default=b; fi
fi
save_env A_TRY B_TRY
"""
GRUB_END = """\
# An entry that cannot be loaded must not end in a menu. A list is of numbers: GRUB takes "a b" for one id.
set fallback="0 1"
set timeout=0
# GRUB was started from the ESP: the slots are on the same disk. GRUB 2.06 cannot search by partition name.
regexp --set=1:disk '^([^,]*)' "$root"
"""
GRUB_ENTRY = """\
menuentry "slot {slot}" --id {slot} {{
  set root=$disk,gpt{partition}
  echo "grub: slot {slot}"
  linux /vmlinuz {options}
  initrd /initrd.img
}}
"""


def run(*command, **more):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, **more)


def write_into(disk, image, offset):
    """Copies an image into the disk at an offset, without blocks of zeros."""
    with open(image, "rb") as source, open(disk, "r+b") as target:
        position = offset
        while block := source.read(MIB):
            if block.count(0) != len(block):
                target.seek(position)
                target.write(block)
            position += len(block)


def systemd_boot(esp, release, options):
    """Fills the directory of an ESP: loader, and an entry for slot a with its kernel beside it."""
    for place in ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"):
        (esp / place).parent.mkdir(parents=True)
        shutil.copy(SYSTEMD_BOOT, esp / place)
    (esp / "distd/a").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img"):
        target = esp / "distd/a" / name
        # debugfs does not follow links: Debian's /vmlinuz is a link into /boot.
        stat = subprocess.run(["debugfs", "-R", f"stat /{name}", release], check=True, capture_output=True, text=True).stdout
        link = re.search(r'Fast link dest: "([^"]*)"', stat)
        source = link.group(1) if link else name
        run("debugfs", "-R", f"dump /{source} {target}", release, stderr=subprocess.DEVNULL)
        assert target.stat().st_size > MIB, f"{name} of {release} was not read"
    entries = esp / "loader/entries"
    entries.mkdir(parents=True)
    (esp / "loader/loader.conf").write_text("timeout 0\nconsole-mode keep\neditor no\n")
    (esp / "loader/entries.srel").write_text("type1\n")
    (entries / "distd-a.conf").write_text(systemd_boot_entry("a", "1", options))


def systemd_boot_entry(slot, version, options=OPTIONS):
    return (f"title slot {slot}\nsort-key distd\nversion {version}\nlinux /distd/{slot}/vmlinuz\n"
            f"initrd /distd/{slot}/initrd.img\noptions {options.format(slot=slot)}\n")


def grub(esp, _release, options, choice=GRUB_CHOICE, variables=("saved_entry=a",)):
    """Fills the directory of an ESP: GRUB with its configuration and environment block."""
    (esp / "EFI/BOOT").mkdir(parents=True)
    (esp / "grub").mkdir()
    run("grub-mkimage", "-O", "x86_64-efi", "-p", "/grub", "-o", esp / "EFI/BOOT/BOOTX64.EFI", *GRUB_MODULES)
    entries = [GRUB_ENTRY.format(slot=slot, partition=partition, options=options.format(slot=slot, rauc=slot.upper()))
               for slot, partition in (("a", 2), ("b", 3))]
    (esp / "grub/grub.cfg").write_text(GRUB_START + choice + GRUB_END + "".join(entries))
    run("grub-editenv", esp / "grub/grubenv", "create")
    run("grub-editenv", esp / "grub/grubenv", "set", *variables)


def rauc(esp, release, options):
    """As `grub`, with the menu and the variables of RAUC."""
    options += " rauc.slot={rauc}"
    grub(esp, release, options, RAUC_CHOICE, ("ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0"))


LOADERS = {"systemd-boot": systemd_boot, "grub": grub, "rauc": rauc}


def make(loader, release, out, data=None, layout=None, options=OPTIONS, tools=None):
    out, layout = pathlib.Path(out), layout or LAYOUT
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        work = pathlib.Path(work)
        esp, empty = work / "esp", work / "empty"
        esp.mkdir(), empty.mkdir()
        LOADERS[loader](esp, release, options)
        run("mkfs.vfat", "-C", "-F", "32", "-n", "ESP", "-i", "D157D000", work / "esp.img", layout["esp"][1] * 1024)
        run("mcopy", "-s", "-i", work / "esp.img", *sorted(esp.iterdir()), "::")
        run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-E", "root_owner=0:0", "-d", data or empty, work / "data.img",
            f"{layout['data'][1]}M")
        out.unlink(missing_ok=True)
        with open(out, "wb") as file:
            os.truncate(file.fileno(), (sum(list(layout.values())[-1]) + 1) * MIB)
        table = "label: gpt\nlabel-id: D157D000-0000-4000-8000-0000000000D0\n" + "".join(
            f"start={start}MiB, size={size}MiB, name={name}, type={'U' if name == 'esp' else 'L'}\n"
            for name, (start, size) in layout.items())
        run("sfdisk", "-q", out, input=table.encode())
        images = {"esp": work / "esp.img", "root-a": release, "data": work / "data.img"}
        if tools:
            images["tools"] = tools
        for name, image in images.items():
            assert os.stat(image).st_size <= layout[name][1] * MIB, f"{image} is larger than {name}"
            write_into(out, image, layout[name][0] * MIB)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in LOADERS:
        sys.exit(__doc__)
    make(*sys.argv[1:])
