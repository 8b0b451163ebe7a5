#!/usr/bin/env python3
"""Power cuts of a machine with a real boot loader: records each write and flush of one update to the disk, rebuilds the
disk as a power cut may leave it, and boots it.

    tests/vm/cuts.py LOADER CASE IMAGES WORK [--states N] [--ends N] [--seed N]

LOADER: grub or systemd-boot. CASE: `healthy`, an update from release 1 to 2; or `sick`, one to release 5, which fails its
check. IMAGES: from lean.sh. WORK: a directory that is kept, 1 GB: what was recorded and what was booted is not done again.
BIN in the environment: the directory of the binaries.

A state of the disk is all that was written before some flush, and a subset of the writes between that flush and the next
one: none, the first few, or random ones, of which some are torn in sectors of 512 bytes. States with the same bytes count
once. Each state that is chosen is booted. It must come up in a slot that has all bytes of a release; from one in N
(--ends) the agent then ends the update, through as many restarts as it takes.
"""
import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import disk
from guest import CPU, FIRMWARE, VARIABLES, accelerator
from update import BOOT_PATH, HOST

SECTOR = 512
SEED = 7
VERSIONS = {"healthy": "2", "sick": "5"}
# Where a device ends: version, slot, and state of its attempt. It begins with release 1 in slot b.
ENDS = {"healthy": ("2", "a", "succeeded"), "sick": ("1", "b", "rolled_back")}
# Longest time in which a state comes up, and in which the agent has ended the update, seconds: on a busy host a boot of an
# emulated machine takes a minute.
UP_SECONDS, END_SECONDS = 300, 1200


class Brick(Exception):
    """The machine did not come up."""


# The realm.

class Realm:
    """An origin on the host with the releases, and one device. It is the same one each time, at the same address: the
    recorded disks have the device's identity."""

    def __init__(self, work, case, images):
        self.work, self.case, self.images = work, case, images
        self.bin = pathlib.Path(os.environ["BIN"])
        self.channel = f"os:{case}"

    def __enter__(self):
        self.work.mkdir(parents=True, exist_ok=True)
        ports = self.work / "ports"
        if not ports.exists():
            sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
            ports.write_text(" ".join(str(each.getsockname()[1]) for each in sockets))
            for each in sockets:
                each.close()
        self.http, self.quic = ports.read_text().split()
        out, log = open(self.work / "origin.out", "wb"), open(self.work / "origin.log", "ab")
        self.origin = subprocess.Popen(
            [self.bin / "distd-server", "serve", "--data", self.work / "origin", "--http", f"127.0.0.1:{self.http}",
             "--quic", f"127.0.0.1:{self.quic}", "--patches", "false"], stdout=out, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while b"origin listening on" not in (self.work / "origin.out").read_bytes():
                assert self.origin.poll() is None and time.monotonic() < deadline, "the origin did not start"
                time.sleep(0.1)
            if not (self.work / "ready").exists():
                self.prepare()
                (self.work / "ready").touch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.origin.terminate()
        self.origin.wait()

    def admin(self, *arguments):
        done = subprocess.run([self.bin / "distd", "--data", self.work / "admin", "--json", *arguments],
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"distd {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def prepare(self):
        self.admin("login", "--server", f"https://127.0.0.1:{self.http}", "--token-file", self.work / "origin/admin.token")
        self.admin("grant", "add", "everyone", "*", "--by-certificate")
        for version in ("1", VERSIONS[self.case]):
            self.admin("push", self.images / f"release-{version}.img", "--product", "os", "--version", version)
        self.admin("channel", "set", self.channel, "1")
        token = self.admin("token", "join", "--role", "leaf", "--uses", "1")["token"]
        subprocess.run([self.bin / "distd", "--data", self.work / "device", "enroll", "--parent", f"127.0.0.1:{self.quic}",
                        "--label", "device"], env={**os.environ, "DISTD_JOIN_TOKEN": token}, check=True,
                       stdout=subprocess.DEVNULL)

    def data(self, loader):
        """The data partition's files: the state of the enrolled device with its settings."""
        data = self.work / "data"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(self.work / "device", data / "device")
        settings = f"""parents = ["{HOST}:{self.quic}"]

[follow]
channel = "{self.channel}"
poll_seconds = 10
slots = ["a=/dev/disk/by-partlabel/root-a", "b=/dev/disk/by-partlabel/root-b"]
boot_loader = "{loader}"
boot_path = "{BOOT_PATH[loader]}"
boot_tries = 2
reboot_command = "restart"
"""
        if loader == "systemd-boot":
            settings += f'kernel = "vmlinuz"\ninitrd = "initrd.img"\nkernel_options = "{disk.LEAN_OPTIONS}"\n'
        (data / "device/client.toml").write_text(settings)
        (data / "device/client.toml").chmod(0o600)
        return data

    def reported(self):
        """Time of the device's newest report, its version and the state of its update."""
        node = self.admin("fleet", "ls", "--limit", "1")["devices"][0]
        channel = node["channels"][0] if node["channels"] else {"version": None, "update": None}
        return node["reported"] or 0, channel["version"], channel["update"]


# The machine.

class Machine:
    """Boots a disk. A restart of the guest ends qemu, and `follow` starts it anew, with the firmware's variables kept."""

    def __init__(self, image, variables, console, log=None):
        """`log`: prefix of the files to which the writes of each boot are recorded."""
        self.image, self.variables, self.console, self.log = image, variables, console, log
        self.boots, self.marks = 0, []

    def command(self):
        command = [
            "qemu-system-x86_64", "-name", "distd-cuts", "-nodefaults", "-display", "none", "-no-reboot",
            "-machine", f"q35,accel={accelerator()}", "-cpu", CPU[accelerator()], "-smp", "1", "-m", "384", "-rtc", "base=utc",
            "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}",
            "-drive", f"if=pflash,format=raw,file={self.variables}",
            "-blockdev", f"driver=file,node-name=file,filename={self.image},cache.no-flush=on",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        ]
        if self.log:
            log = f"{self.log}-{self.boots}"
            open(log, "wb").close()
            command += ["-blockdev", f"driver=file,node-name=log,filename={log},cache.no-flush=on",
                        "-blockdev", f"driver=blklogwrites,node-name=logged,file=file,log=log,log-sector-size={SECTOR}",
                        "-blockdev", "driver=raw,node-name=system,file=logged"]
        else:
            command += ["-blockdev", "driver=raw,node-name=system,file=file"]
        return command + ["-device", "virtio-blk-pci,drive=system,bootindex=0,write-cache=on"]

    def lines(self, deadline):
        """Lines of the console, from boot to boot, until the deadline; then raises TimeoutError. Ends the machine when the
        caller leaves."""
        with open(self.console, "wb") as console:
            while True:
                process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
                ran_out = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
                ran_out.start()
                try:
                    for line in process.stdout:
                        console.write(line)
                        console.flush()
                        yield line.decode("latin-1").strip()
                finally:
                    process.kill()
                    process.wait()
                    ran_out.cancel()
                if time.monotonic() >= deadline:
                    raise TimeoutError
                self.boots += 1
                yield "machine-restarts"

    def mark(self, name):
        """Notes how long the record was when something happened."""
        self.marks.append((self.boots, os.stat(f"{self.log}-{self.boots}").st_size, name))


def up(line):
    """Slot and release in the line with which a release says that it is up."""
    match = re.search(r"lean-up slot=(\S*) release=(\S*)", line)
    return match and match.groups()


def follow(machine, realm, expected, began, settle=0):
    """Runs a machine until the agent has ended the update: its attempt is in the expected state, the release runs, and the
    origin has heard of that. Then it goes on for `settle` seconds, until the kernel has written what it holds. Yields each
    line."""
    version, slot, state = expected
    status, asked, ended = {}, 0.0, None
    for line in machine.lines(time.monotonic() + END_SECONDS):
        yield line
        if ended and time.monotonic() > ended + settle:
            return
        if line.startswith("lean-status "):
            try:
                status = json.loads(line.removeprefix("lean-status "))
            except ValueError:
                continue  # Cut off by another line.
            attempt = status.get("attempt") or {}
            if status["version"] == version and status["slot"] == slot and attempt.get("state") == state \
                    and status["written"] >= began and time.monotonic() > asked + 0.5:
                asked = time.monotonic()
                at, reported, _ = realm.reported()
                if at >= began and reported == version:
                    ended = ended or time.monotonic()
                    if not settle:
                        return


# What is on a disk.

def part(layout_name, image=None):
    start, size = disk.LEAN_LAYOUT[layout_name]
    return start * disk.MIB, size * disk.MIB


def releases(images, case):
    """Length and hash of each release."""
    found = {}
    for version in ("1", VERSIONS[case]):
        content = (images / f"release-{version}.img").read_bytes()
        found[version] = (len(content), hashlib.sha256(content).hexdigest())
    return found


def release_in(image, slot, known):
    """Version whose bytes a slot has; None for others."""
    start, _ = part(f"root-{slot}")
    with open(image, "rb") as file:
        for version, (length, digest) in known.items():
            file.seek(start)
            if hashlib.sha256(file.read(length)).hexdigest() == digest:
                return version
    return None


def default_slot(loader, image):
    """Slot that the boot loader starts when no order is open, read from the ESP by mtools."""
    esp = f"{image}@@{part('esp')[0]}"
    if loader == "grub":
        text = subprocess.run(["mtype", "-i", esp, "::grub/grubenv"], check=True, capture_output=True, text=True).stdout
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return values.get("saved_entry") if not values.get("next_entry") else f"{values['next_entry']} once"
    names = subprocess.run(["mdir", "-b", "-i", esp, "::loader/entries"], check=True, capture_output=True, text=True).stdout
    versions = []
    for name in re.findall(r"distd-\S*\.conf", names):
        text = subprocess.run(["mtype", "-i", esp, f"::loader/entries/{name}"], check=True, capture_output=True,
                              text=True).stdout
        versions.append((int(re.search(r"^version (\d+)", text, re.M).group(1)), name))
    name = max(versions)[1].removeprefix("distd-").removesuffix(".conf")
    return name if "+" not in name else f"{name[0]} counted"


# Recording.

def prepare(loader, realm, images, work):
    """A disk whose device has installed release 1 into slot b, and confirmed it."""
    base = work / "base.img"
    if base.exists():
        return base
    made = work / "preparing.img"
    disk.make(loader, images / "release-1.img", made, realm.data(loader), disk.LEAN_LAYOUT, disk.LEAN_OPTIONS,
              images / "tools.img")
    shutil.copy(VARIABLES, work / "vars.fd")
    machine = Machine(made, work / "vars.fd", work / "prepare.log")
    for _ in follow(machine, realm, ("1", "b", "succeeded"), time.time(), settle=45):
        pass
    assert default_slot(loader, made) == "b", default_slot(loader, made)
    made.rename(base)
    return base


def record(loader, case, realm, images, work, base):
    """Records the update, unless that was done. Returns the names and places of what happened."""
    marks = work / "marks.json"
    if not marks.exists():
        realm.admin("channel", "set", realm.channel, VERSIONS[case])
        image, variables = work / "recording.img", work / "recording.fd"
        shutil.copy(base, image)
        shutil.copy(work / "vars.fd", variables)
        machine = Machine(image, variables, work / "record.log", log=str(work / "record"))
        began = time.monotonic()
        for line in follow(machine, realm, ENDS[case], time.time()):
            for sign, name in (("lean-up", "up"), ("attempt begins", "fetching"), ("lean-activate", "activating"),
                               ("the system restarts", "restarting"), ("lean-restart", "stopped"),
                               ("the release works", "confirmed"), ("the release does not work", "going back"),
                               ("the device went back", "went back")):
                if sign in line:
                    machine.mark(name)
        assert default_slot(loader, image) == ENDS[case][1]
        image.unlink()
        marks.write_text(json.dumps(machine.marks))
        print(f"  recorded in {time.monotonic() - began:.0f} s", flush=True)
    return json.loads(marks.read_text())


Entry = collections.namedtuple("Entry", "sector count flags data phase")
FLUSH, FUA, DISCARD = 1, 2, 4


def read_log(path, phase_at):
    """Entries of a file in the format of dm-log-writes, as qemu writes it."""
    content = pathlib.Path(path).read_bytes()
    magic, version, number, sector_size = struct.unpack_from("<QQQL", content)
    assert (magic, version, sector_size) == (0x6A736677736872, 1, SECTOR), path
    entries, position = [], SECTOR
    # The superblock may be older than the last entries; an entry that was not written is zeros.
    while position + SECTOR <= len(content):
        sector, count, flags, length = struct.unpack_from("<QQQQ", content, position)
        if (sector, count, flags, length) == (0, 0, 0, 0):
            break
        where = position
        position += SECTOR
        data = b""
        if count and not flags & DISCARD:
            data = content[position:position + count * SECTOR]
            position += count * SECTOR
            assert len(data) == count * SECTOR, f"{path} ends in an entry"
        entries.append(Entry(sector, count, flags, data, phase_at(where)))
    assert len(entries) >= number, f"{path}: {len(entries)} entries, {number} expected"
    return entries


def recording(work, marks):
    """All entries of the recording, in order; each boot begins with one more flush, since a restart loses nothing."""
    entries, boot = [], 0
    while (log := work / f"record-{boot}").exists():
        own = [(size, name) for at, size, name in marks if at == boot]

        def phase_at(position):
            reached = [name for size, name in own if size <= position]
            return f"boot {boot}, {reached[-1] if reached else 'firmware'}"
        entries += read_log(log, phase_at)
        entries.append(Entry(0, 0, FLUSH, b"", f"boot {boot}, end"))
        boot += 1
    return entries


# States.

class State:
    """All entries before a flush, and sectors of some entries after it."""

    def __init__(self, flush, picked, kind, places, phase):
        self.flush, self.picked, self.kind, self.places, self.phase = flush, picked, kind, places, phase
        self.key = ""


def places_of(entries):
    """Names of the partitions that entries write to."""
    found = set()
    for entry in entries:
        for name in disk.LEAN_LAYOUT:
            start, size = part(name)
            if start <= entry.sector * SECTOR < start + size:
                found.add(name)
    return sorted(found)


def torn(entry, rng):
    """Some sectors of an entry: all; or, of a longer one, the first or the last few, or random ones."""
    every = list(range(entry.count))
    if entry.count == 1 or rng.random() < 0.4:
        return every
    cut = rng.randrange(1, entry.count)
    return rng.choice((every[:cut], every[cut:], [n for n in every if rng.random() < 0.5] or every[:1]))


def epochs(entries):
    """Ranges of entries between two flushes: (first, end), where `end` is that of a flush or of a forced write."""
    first = 0
    for index, entry in enumerate(entries):
        if entry.flags & (FLUSH | FUA):
            yield first, index
            first = index + 1 if not entry.count else index
    yield first, len(entries)


def states(entries, rng):
    """Candidates, of each epoch in turn."""
    for first, end in epochs(entries):
        writes = [n for n in range(first, end) if entries[n].count and not entries[n].flags & DISCARD]
        phase = entries[min(first, len(entries) - 1)].phase
        places = places_of(entries[n] for n in writes)
        whole = lambda chosen: [(n, list(range(entries[n].count))) for n in chosen]
        yield State(first, [], "flush", places, phase)
        cuts = range(1, len(writes) + 1)
        for cut in cuts if len(cuts) <= 16 else sorted(rng.sample(cuts, 16)):
            yield State(first, whole(writes[:cut]), "prefix", places, phase)
        # A journal or a boot loader's partition has few writes between two flushes, and a slot has many.
        for _ in range(min(24, 3 * len(writes))):
            chosen = [n for n in writes if rng.random() < 0.5]
            yield State(first, [(n, torn(entries[n], rng)) for n in chosen], "subset", places, phase)


def distinct(entries, candidates, base):
    """The candidates whose bytes differ; sets their keys. A sum of hashes of changed sectors tells bytes apart."""
    original = open(base, "rb")

    def term(sector, data):
        original.seek(sector * SECTOR)
        if original.read(SECTOR) == data:
            return 0
        return int.from_bytes(hashlib.blake2b(data, digest_size=16, salt=struct.pack("<QQ", sector, 0)).digest(), "little")

    terms = [[term(entry.sector + n, entry.data[n * SECTOR:][:SECTOR]) for n in range(entry.count)] if entry.data else []
             for entry in entries]
    durable, total, done, seen = {}, 0, 0, set()
    for state in candidates:  # In order of their flushes.
        while done < state.flush:
            for n, value in enumerate(terms[done]):
                sector = entries[done].sector + n
                total += value - durable.get(sector, 0)
                durable[sector] = value
            done += 1
        own = {}
        for index, sectors in state.picked:
            for n in sectors:
                own[entries[index].sector + n] = terms[index][n]
        key = total + sum(value - durable.get(sector, 0) for sector, value in own.items())
        if key not in seen:
            seen.add(key)
            state.key = hashlib.sha256(str(key).encode()).hexdigest()[:16]
            yield state


# Turns of the three kinds of states that `rank` tells apart.
TURNS = (0, 1, 0, 2, 0, 1, 0, 1, 0, 2)


def rank(state):
    """0 for a state in which the boot loader's partition has just been written, 1 for one of the device's state from the
    activation on, 2 for all others."""
    if "esp" in state.places:
        return 0
    return 2 if state.phase.endswith("fetching") or state.phase == "boot 0, up" or not state.places else 1


def in_turn(found, rng):
    """All states in the order in which they are booted: by turns of their kinds, and of the epochs of each kind."""
    queues = []
    for kind in range(3):
        by_epoch = collections.defaultdict(list)
        for state in found:
            if rank(state) == kind:
                by_epoch[state.flush].append(state)
        turns = []
        for group in by_epoch.values():
            rng.shuffle(group)
            turns += [(turn, rng.random(), state) for turn, state in enumerate(group)]
        queues.append(collections.deque(state for _, _, state in sorted(turns, key=lambda each: each[:2])))
    result = []
    while any(queues):
        result += [queues[kind].popleft() for kind in TURNS if queues[kind]]
    return result


def build(state, entries, base, image):
    """Writes the disk of a state."""
    shutil.copyfile(base, image)
    with open(image, "r+b") as file:
        for entry in entries[:state.flush]:
            if entry.data:
                file.seek(entry.sector * SECTOR)
                file.write(entry.data)
        for index, sectors in state.picked:
            for n in sectors:
                file.seek((entries[index].sector + n) * SECTOR)
                file.write(entries[index].data[n * SECTOR:][:SECTOR])


# Booting.

def boot(loader, case, realm, work, image, known, to_the_end):
    """Boots a state. Returns what was seen; `fault` is empty when all is well."""
    variables = work / "state.fd"
    shutil.copy(work / "vars.fd", variables)
    whole = {slot: release_in(image, slot, known) for slot in "ab"}
    seen = {"up": None, "ups": [], "ended": False, "repaired": False, "fault": ""}
    machine = Machine(image, variables, work / "state.log")
    began, started = time.time(), time.monotonic()
    lines = follow(machine, realm, ENDS[case], began) if to_the_end else machine.lines(started + UP_SECONDS)
    try:
        for line in lines:
            if "lean-fault" in line:
                seen["fault"] = line
                break
            seen["repaired"] |= "lean-repaired" in line
            if found := up(line):
                seen["ups"].append(found)
                if seen["up"] is None:
                    seen["up"], seen["seconds_up"] = found, round(time.monotonic() - started, 1)
                    if whole[found[0]] != found[1]:
                        seen["fault"] = f"half: slot {found[0]} says release {found[1]}, and has the bytes of {whole[found[0]]}"
                        break
            if "agent listening on" in line and not to_the_end:
                break
        else:
            seen["ended"] = True
    except TimeoutError:
        seen["fault"] = "brick: nothing came up" if seen["up"] is None else "the agent did not end the update in time"
    finally:
        lines.close()
    if seen["ended"]:
        version, slot, _ = ENDS[case]
        if default_slot(loader, image) != slot:
            seen["fault"] = f"the default is {default_slot(loader, image)}, not {slot}"
        elif release_in(image, slot, known) != version:
            seen["fault"] = f"half: slot {slot} has not the bytes of release {version}"
    seen["seconds"] = round(time.monotonic() - started, 1)
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loader", choices=disk.LOADERS)
    parser.add_argument("case", choices=VERSIONS)
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--states", type=int, default=60, help="number of states that are booted")
    parser.add_argument("--ends", type=int, default=4, help="the agent ends the update from one in N of them")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    loader, case, images = options.loader, options.case, options.images
    work = options.work / f"{loader}-{case}"
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # So that the machine and the origin end, too.
    print(f"{loader}, {case}, {accelerator()}, seed {options.seed}", flush=True)
    with Realm(work / "realm", case, images) as realm:
        base = prepare(loader, realm, images, work)
        entries = recording(work, record(loader, case, realm, images, work, base))
        rng = random.Random(options.seed)
        candidates = list(states(entries, rng))
        found = list(distinct(entries, candidates, base))
        picked = in_turn(found, rng)[:options.states]
        writes = [entry for entry in entries if entry.count]
        print(f"  {len(writes)} writes of {sum(entry.count for entry in writes) * SECTOR} bytes, "
              f"{sum(1 for entry in entries if entry.flags & (FLUSH | FUA))} flushes; "
              f"{len(candidates)} states, {len(found)} distinct, {len(picked)} chosen", flush=True)
        results, known = work / "results.jsonl", releases(images, case)
        done = {}
        if results.exists():
            done = {each["key"]: each for each in map(json.loads, results.read_text().splitlines())}
        for number, state in enumerate(picked):
            if state.key in done:
                continue
            image = work / "state.img"
            build(state, entries, base, image)
            seen = {"key": state.key, "kind": state.kind, "phase": state.phase, "places": state.places, "flush": state.flush,
                    **boot(loader, case, realm, work, image, known, int(state.key, 16) % options.ends == 0)}
            done[state.key] = seen
            with open(results, "a") as file:
                file.write(json.dumps(seen) + "\n")
            print(f"  {number + 1}/{len(picked)} {state.kind:6} {state.phase:24} {'+'.join(state.places) or '-':18}"
                  f" {seen['seconds']:6.1f} s  {'>'.join('/'.join(each) for each in seen['ups'])}"
                  f"{' repaired' if seen['repaired'] else ''}{' ended' if seen['ended'] else ''} {seen['fault']}", flush=True)
            if seen["fault"]:
                shutil.copy(image, work / f"fault-{state.key}.img")
                shutil.copy(work / "state.log", work / f"fault-{state.key}.log")
        mine = [done[state.key] for state in picked if state.key in done]
        old = sum(1 for each in mine if each["up"] and each["up"][1] == "1")
        print(f"{loader}, {case}: states {len(candidates)}, distinct {len(found)}, booted {len(mine)}, "
              f"in release 1 {old}, in release {VERSIONS[case]} {sum(1 for each in mine if each['up']) - old}, "
              f"bricked {sum(1 for each in mine if not each['up'])}, "
              f"half {sum(1 for each in mine if each['fault'].startswith('half'))}, "
              f"ended by the agent {sum(1 for each in mine if each['ended'])}, "
              f"data repaired by e2fsck {sum(1 for each in mine if each['repaired'])}, "
              f"other faults {sum(1 for each in mine if each['fault'] and each['up'] and not each['fault'].startswith('half'))}, "
              f"{sum(each['seconds'] for each in mine):.0f} s")
        sys.exit(any(each["fault"] for each in mine))


if __name__ == "__main__":
    main()
