"""A virtual machine that runs a disk image, for tests: its console, its power, and commands in it.

    with Guest(disk, work) as guest:
        guest.wait_up()                        # ("a", "1"): slot and release that booted
        guest.run("uname -r")                  # its output
        guest.run("systemctl reboot", answer=False)
        guest.wait_up()

The disk is written. The machine has UEFI firmware (OVMF) whose variables are kept in the work directory, a hardware
watchdog (i6300esb) that resets it, one processor, and qemu's user network: the host's loopback is 10.0.2.2, and nothing
reaches the guest. Everything is bounded by time-outs, and ends with the `with`.

The machine runs on KVM where KVM can run it, else it is emulated, about four times slower. DISTD_TEST_VM_ACCEL=kvm or
tcg decides instead.
"""
import base64
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time

FIRMWARE = pathlib.Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = pathlib.Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
# Some hosts that are virtual machines themselves refuse to set the register arch-capabilities.
CPU = {"kvm": "host,arch-capabilities=off", "tcg": "max"}


class GuestError(Exception):
    """The guest did not do what was waited for in time; says what its console said last."""


@functools.cache
def accelerator():
    """`kvm` if KVM runs the firmware for three seconds, else `tcg`. A /dev/kvm that is there is not enough: a KVM without
    hardware support (kvm_pvm in a virtual machine) runs kernels made for it, and stops at the first instruction of the
    firmware that it cannot emulate."""
    if forced := os.environ.get("DISTD_TEST_VM_ACCEL"):
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,accel=kvm", "-cpu", CPU["kvm"],
         "-m", "256", "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}", "-qmp", "stdio"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        process.stdin.write('{"execute": "qmp_capabilities"}\n')
        process.stdin.flush()
        time.sleep(3)
        answer, _ = process.communicate('{"execute": "query-status"}\n{"execute": "quit"}\n', timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "tcg"
    finally:
        process.kill()
        process.wait()
    return "kvm" if '"running": true' in answer else "tcg"


class Guest:
    def __init__(self, disk, work, extra_disks=(), memory=768):
        """`extra_disks`: images that the guest may read, as /dev/disk/by-id/virtio-NAME (name without suffix)."""
        self.disk, self.work, self.memory = pathlib.Path(disk), pathlib.Path(work), memory
        self.extra_disks = [pathlib.Path(extra) for extra in extra_disks]
        self.console = self.work / "console.log"
        self.events = []  # (seconds since the epoch, name, data) of QMP
        self.position = 0  # in the console's log: waiting begins here
        self.process = None
        self.patience = 1 if accelerator() == "kvm" else 8  # factor of all time-outs

    def __enter__(self):
        self.work.mkdir(parents=True, exist_ok=True)
        self.console.write_bytes(b"")
        if not (self.work / "vars.fd").exists():
            shutil.copy(VARIABLES, self.work / "vars.fd")
        self.power_on()
        return self

    def __exit__(self, *_):
        self.power_cut()

    # Power.

    def power_on(self):
        for name in ("qmp", "shell"):
            (self.work / name).unlink(missing_ok=True)
        command = [
            "qemu-system-x86_64", "-name", "distd-vm", "-nodefaults", "-display", "none", "-machine", f"q35,accel={accelerator()}",
            "-cpu", CPU[accelerator()], "-smp", "1", "-m", str(self.memory), "-rtc", "base=utc",
            "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}",
            "-drive", f"if=pflash,format=raw,file={self.work / 'vars.fd'}",
            "-drive", f"if=none,id=system,format=raw,file={self.disk}",
            "-device", "virtio-blk-pci,drive=system,serial=system,bootindex=0",
            # Without its ROM the firmware does not try to boot from the network.
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
            "-device", "i6300esb", "-action", "watchdog=reset",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=shell,path={self.work / 'shell'},server=on,wait=off",
            "-device", "virtserialport,chardev=shell,name=vm.shell",
            "-qmp", f"unix:{self.work / 'qmp'},server=on,wait=off",
        ]
        for extra in self.extra_disks:
            command += ["-drive", f"if=none,id={extra.stem},format=raw,readonly=on,file={extra}",
                        "-device", f"virtio-blk-pci,drive={extra.stem},serial={extra.stem}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.qmp = self._connect("qmp").makefile("rw")
        self.shell = self._connect("shell")
        threading.Thread(target=self._read_events, args=(self.qmp,), daemon=True).start()
        self._command("qmp_capabilities")

    def power_cut(self):
        """Ends the machine as a cable that is pulled does: what the guest has not written to its disk is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def reset(self):
        """Presses the reset button."""
        self._command("system_reset")

    # Waiting.

    def wait_console(self, pattern, seconds=60):
        """Waits until the console says `pattern` after what was waited for last. Returns the match."""
        seconds *= self.patience
        deadline = time.monotonic() + seconds
        while True:
            with open(self.console, "rb") as file:
                file.seek(self.position)
                text = file.read().decode("latin-1")
            match = re.search(pattern, text)
            if match:
                self.position += match.end()
                return match
            if self.process.poll() is not None:
                raise GuestError(f"the virtual machine ended with {self.process.returncode}")
            self._reset_silent_firmware()
            if time.monotonic() > deadline:
                events = [f"{time.ctime(at)} {event}" for at, event, _ in self.events[-5:]]
                raise GuestError(f"no {pattern!r} on the console in {seconds} s; the last events are {events}; it ends"
                                 f" with:\n{text[-3000:]}")
            time.sleep(0.05)

    def _reset_silent_firmware(self):
        """Presses the reset button when the console has said nothing since a reset: OVMF 2022.11 under emulation stands
        still after one restart in some twenty, before it starts a boot loader. A restart counts for no boot then."""
        resets = [at for at, event, _ in self.events if event == "RESET"]
        if resets and time.time() > resets[-1] + 20 * self.patience and self.console.stat().st_mtime < resets[-1] + 1:
            print(f"          the firmware said nothing for {20 * self.patience} s: reset", flush=True)
            self.reset()
            time.sleep(1)  # Until the event of this reset is there.

    def wait_up(self, seconds=90):
        """Waits until the guest is up once more. Returns slot and release."""
        match = self.wait_console(r"vm-up slot=(\S*) release=(\S*)\s", seconds)
        return match.group(1), match.group(2)

    def wait_event(self, name, since=0.0, seconds=60):
        """Waits for an event of QMP that came after `since` (seconds since the epoch). Returns its time and data."""
        seconds *= self.patience
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for at, event, data in list(self.events):
                if event == name and at >= since:
                    return at, data
            time.sleep(0.05)
        raise GuestError(f"no event {name} in {seconds} s; there were {[event for _, event, _ in self.events]}")

    # Commands in the guest.

    def run(self, script, seconds=60, check=True, answer=True):
        """Runs a script of sh as root. Returns its output; with `check` it must succeed. Without `answer` nothing is
        waited for: the script ends the system."""
        seconds *= self.patience
        self._drop_stale_answers()
        self.shell.settimeout(seconds)
        self.shell.sendall(base64.b64encode(script.encode()) + b"\n")
        if not answer:
            return ""
        line = b""
        try:
            while not line.endswith(b"\n"):
                line += self.shell.recv(65536)
        except TimeoutError:
            raise GuestError(f"no answer in {seconds} s to: {script}") from None
        code, _, output = line.decode().partition(" ")
        output = base64.b64decode(output).decode(errors="replace")
        if check and code != "0":
            raise GuestError(f"exit code {code} of: {script}\n{output}")
        return output.rstrip("\n")

    def _drop_stale_answers(self):
        """Drops what a script answered that a reboot had cut off."""
        self.shell.setblocking(False)
        try:
            while self.shell.recv(65536):
                pass
        except BlockingIOError:
            pass

    # QMP.

    def _connect(self, name):
        connection = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                connection.connect(str(self.work / name))
                return connection
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise GuestError("the virtual machine did not start") from None
                time.sleep(0.02)

    def _command(self, name):
        self.qmp.write(json.dumps({"execute": name}) + "\n")
        self.qmp.flush()

    def _read_events(self, qmp):
        try:
            for line in qmp:
                message = json.loads(line)
                if "event" in message:
                    stamp = message["timestamp"]
                    at = stamp["seconds"] + stamp["microseconds"] / 1e6
                    self.events.append((at, message["event"], message.get("data", {})))
        except (OSError, ValueError):
            pass  # The machine ended.
