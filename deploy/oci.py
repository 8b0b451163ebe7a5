#!/usr/bin/env python3
"""Writes container images of static programs, without a daemon: one OCI archive for each program, with an image for each
processor that the program was built for.

oci.py [-o DIR] [-s DIR] [-c FILE] [PROGRAM...]

PROGRAM is distd-server, distd-peer, distd-device or distd; without one, all of them that -s has. -s is the directory in
which deploy/static.sh left them, by default target/static; -o, by default target/oci, gets PROGRAM.tar of each. The last
lines say what was written: file, digest, processors.

An image has the program, the authorities that certify public servers (-c, by default Debian's file), an empty /tmp and a
data directory, and nothing else: no shell, no library. The program runs as the user 65532.

The same files give the same digest: members are sorted, owners and times are fixed. The time is SOURCE_DATE_EPOCH, or
that of the last commit.
"""
import argparse
import gzip
import hashlib
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A user that no system has for something else; the number stands in images of other makers for "not root" too.
USER = 65532
# Where programs look for the authorities: the origin for webhooks, sign-in and S3, relays and devices for mirrors of apt.
# Nodes of a realm trust the realm alone, and need no file.
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
# Name of a processor in the files of deploy/static.sh: its name in an image, its variant, the machine of ELF.
PROCESSORS = {
    "x86_64": ("amd64", None, 62),
    "aarch64": ("arm64", "v8", 183),
    "armv7": ("arm", "v7", 40),
}
IMAGES = {
    "distd-server": {
        "title": "distd-server",
        "description": "The origin of distd: takes releases in, signs them, serves relays and devices",
        "as": "distd-server",
        "command": ["serve"],
        "data": ("DISTD_SERVER_DATA", "/var/lib/distd-server"),
        "ports": ["7443/tcp", "7444/tcp", "7444/udp"],
    },
    "distd-peer": {
        "title": "distd-peer",
        "description": "A relay of distd: fetches every byte over the uplink of its site once",
        "as": "distd-peer",
        "command": ["run"],
        "data": ("DISTD_PEER_DATA", "/var/lib/distd-peer"),
        "ports": ["4433/tcp", "4433/udp"],
    },
    "distd-device": {
        "title": "distd-device",
        "description": "A device of distd: installs releases and serves them to its neighbours",
        # Messages name the program so.
        "as": "distd",
        "command": ["agent"],
        "data": ("DISTD_DATA", "/var/lib/distd"),
        "ports": ["4434/udp"],
    },
    "distd": {
        "title": "distd",
        "description": "The command line of distd, for releases and fleets",
        "as": "distd",
        "command": ["--help"],
        "data": ("DISTD_DATA", "/var/lib/distd"),
        "ports": [],
    },
}


def refuse(reason):
    sys.exit(f"oci.py: {reason}")


def commit(form):
    """A fact of the last commit, or nothing outside a repository."""
    done = subprocess.run(["git", "-C", ROOT, "log", "-1", f"--format={form}"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def version():
    for line in (ROOT / "Cargo.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    refuse("Cargo.toml has no version")


def check_program(path, machine):
    """Refuses a program that could not start in an empty image: of another processor, or linked to libraries."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[5] != 1:
        refuse(f"{path} is no program")
    if struct.unpack_from("<H", data, 18)[0] != machine:
        refuse(f"{path} is for another processor")
    wide = data[4] == 2
    table = struct.unpack_from("<Q" if wide else "<I", data, 32 if wide else 28)[0]
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    # The kind 3 names the loader of dynamic libraries.
    if any(struct.unpack_from("<I", data, table + size * i)[0] == 3 for i in range(count)):
        refuse(f"{path} needs libraries of the system; deploy/static.sh builds one that does not")
    return data


def tar(members, seconds):
    """A tar of (name, mode, owner, content) in that order; the content of a directory is None."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, mode, owner, content in members:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner, seconds
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def with_parents(members):
    """The members with the directories that lead to them, sorted by name, each directory before what it holds."""
    named = {name: (name, mode, owner, content) for name, mode, owner, content in members}
    for name in list(named):
        for parent in pathlib.PurePosixPath(name).parents:
            if str(parent) != ".":
                named.setdefault(str(parent), (str(parent), 0o755, 0, None))
    return [named[name] for name in sorted(named, key=lambda name: name.split("/"))]


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Blobs:
    """The content of an archive, by hash."""

    def __init__(self):
        self.held = {}

    def add(self, kind, content, **more):
        digest = hashlib.sha256(content).hexdigest()
        self.held[digest] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content), **more}


def image(blobs, name, processor, program, authorities, seconds):
    """Adds the image of one program for one processor, and returns the description of its manifest."""
    about = IMAGES[name]
    architecture, variant, _ = PROCESSORS[processor]
    variable, data = about["data"]
    layer = tar(
        with_parents([
            (AUTHORITIES, 0o644, 0, authorities),
            ("tmp", 0o1777, 0, None),
            (f"usr/bin/{about['as']}", 0o755, 0, program),
            # A volume that is made for it takes this owner and mode over, so the user can write there.
            (data[1:], 0o700, USER, None),
        ]),
        seconds,
    )
    packed = gzip.compress(layer, compresslevel=9, mtime=0)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    labels = {
        "org.opencontainers.image.title": about["title"],
        "org.opencontainers.image.description": about["description"],
        "org.opencontainers.image.version": version(),
        "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
        "org.opencontainers.image.created": created,
    }
    if revision := commit("%H"):
        labels["org.opencontainers.image.revision"] = revision
    platform = {"architecture": architecture, "os": "linux"} | ({"variant": variant} if variant else {})
    config = platform | {
        "created": created,
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/bin", f"{variable}={data}"],
            "Entrypoint": [f"/usr/bin/{about['as']}"],
            "Cmd": about["command"],
            "ExposedPorts": {port: {} for port in about["ports"]},
            "Volumes": {data: {}},
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": created, "created_by": f"deploy/oci.py {name}"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blobs.add("config.v1+json", canonical(config)),
        "layers": [blobs.add("layer.v1.tar+gzip", packed)],
        "annotations": labels,
    }
    return blobs.add("manifest.v1+json", canonical(manifest), platform=platform)


def write(name, programs, authorities, seconds, out):
    blobs = Blobs()
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            image(blobs, name, processor, program, authorities, seconds) for processor, program in programs.items()
        ],
    }
    # One entry at the top, so that tools find the image without being told which.
    # containerd and podman load it under the second name.
    names = {
        "org.opencontainers.image.ref.name": version(),
        "io.containerd.image.name": f"localhost/{name}:{version()}",
    }
    top = blobs.add("index.v1+json", canonical(index), annotations=names)
    listing = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [top]}
    members = [(f"blobs/sha256/{digest}", 0o644, 0, content) for digest, content in blobs.held.items()]
    members += [
        ("index.json", 0o644, 0, canonical(listing)),
        ("oci-layout", 0o644, 0, canonical({"imageLayoutVersion": "1.0.0"})),
    ]
    path = out / f"{name}.tar"
    # Whoever reads the old file meanwhile keeps it whole.
    part = path.with_name(path.name + ".part")
    part.write_bytes(tar(with_parents(members), seconds))
    part.replace(path)
    print(path, top["digest"], ",".join(PROCESSORS[processor][0] for processor in programs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("-o", "--out", metavar="DIR", type=pathlib.Path, default=target / "oci")
    parser.add_argument("-s", "--static", metavar="DIR", type=pathlib.Path, default=target / "static")
    parser.add_argument("-c", "--authorities", metavar="FILE", type=pathlib.Path, default=f"/{AUTHORITIES}")
    parser.add_argument("programs", metavar="PROGRAM", nargs="*")
    given = parser.parse_args()
    for name in given.programs:
        if name not in IMAGES:
            refuse(f"there is no image of {name}; there are {', '.join(IMAGES)}")
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or commit("%ct") or 0)
    if not given.authorities.is_file():
        refuse(f"there is no {given.authorities}; on Debian it comes with ca-certificates, or -c names another file")
    authorities = given.authorities.read_bytes()
    found = {}
    for name in given.programs or IMAGES:
        built = {processor: given.static / f"{name}-{processor}" for processor in PROCESSORS}
        programs = {
            processor: check_program(path, PROCESSORS[processor][2])
            for processor, path in built.items()
            if path.is_file()
        }
        if programs:
            found[name] = programs
        elif given.programs:
            refuse(f"{given.static} has no {name}: deploy/static.sh x86_64 {name}")
    if not found:
        refuse(f"{given.static} has no program: deploy/static.sh x86_64 distd-server")
    given.out.mkdir(parents=True, exist_ok=True)
    for name, programs in found.items():
        write(name, programs, authorities, seconds, given.out)


if __name__ == "__main__":
    main()
