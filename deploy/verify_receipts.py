#!/usr/bin/env python3
"""Checks a log of receipts of distd: who ran what, and that no device was ahead of its wave.

Usage: verify_receipts.py EXPORT CA.pem [HEAD.json ...]

EXPORT is the file that `distd receipts export` wrote. CA.pem is the certificate of the realm's CA. Each HEAD.json is
log-head.json or log-evidence.json from the state directory of a device or relay: the log must continue these heads.
The program shares no code with distd (formats: docs/receipts.md) and needs Python 3.11 and `cryptography`. Exit status:
0 the log is right, 1 it is not, 2 it cannot be read.
"""
import hashlib
import json
import struct
import sys
from collections import Counter

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

SPKI_HEAD = bytes.fromhex("302a300506032b6570032100")  # an Ed25519 SubjectPublicKeyInfo before its key, RFC 8410
HEAD_FIELDS = {"log", "size", "root", "at", "signature"}
UNDER_WAY = ("open", "paused", "halted")
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)


def blake3_keyed(key, data):
    """First 32 bytes of keyed BLAKE3 of at most 64 bytes: one compression of one block."""
    words = list(struct.unpack("<16I", data.ljust(64, b"\0")))
    # Flags: first and last block of the chunk, root, keyed.
    state = [*struct.unpack("<8I", key), *IV[:4], 0, 0, len(data), 1 | 2 | 8 | 16]

    def mix(a, b, c, d, x, y):
        for word, first, second in ((x, 16, 12), (y, 8, 7)):
            state[a] = (state[a] + state[b] + word) & 0xFFFFFFFF
            state[d] = turn(state[d] ^ state[a], first)
            state[c] = (state[c] + state[d]) & 0xFFFFFFFF
            state[b] = turn(state[b] ^ state[c], second)

    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, words[2 * i], words[2 * i + 1])
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[8 + 2 * i], words[9 + 2 * i])
        words = [words[i] for i in ORDER]
    return struct.pack("<8I", *(state[i] ^ state[i + 8] for i in range(8)))


def turn(word, bits):
    return (word >> bits | word << (32 - bits)) & 0xFFFFFFFF


def point(rollout, node):
    """A device's place in a rollout: it is in the first wave whose threshold is not below."""
    return int.from_bytes(blake3_keyed(rollout.ljust(32, b"\0"), node)[:8], "big")


def tree_hash(leaves):
    """Root of RFC 6962, section 2.1, over the hashes of the entries, by complete subtrees from the left."""
    subtrees = []
    for leaf in leaves:
        size = 1
        while subtrees and subtrees[-1][0] == size:
            leaf, size = hashlib.sha256(b"\1" + subtrees.pop()[1] + leaf).digest(), size * 2
        subtrees.append((size, leaf))
    while len(subtrees) > 1:
        (_, left), (_, right) = subtrees.pop(-2), subtrees.pop()
        subtrees.append((0, hashlib.sha256(b"\1" + left + right).digest()))
    return subtrees[0][1] if subtrees else hashlib.sha256().digest()


def is_signed_head(head, ca):
    message = b"distd-log-head-v1\0" + bytes.fromhex(head["log"]) + struct.pack(">Q", head["size"])
    message += bytes.fromhex(head["root"]) + struct.pack(">Q", head["at"])
    try:
        ca.verify(bytes.fromhex(head["signature"]), message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def heads_in(value):
    """Every head in the JSON of a device."""
    if isinstance(value, dict) and HEAD_FIELDS <= value.keys():
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [head for part in inner for head in heads_in(part)]


class Check:
    def __init__(self):
        self.faults, self.notes, self.releases = [], [], Counter()
        self.rollouts, self.numbers, self.devices, self.restarted = {}, {}, {}, 0

    def entry(self, at, entry):
        kind, body = entry[0], entry[1:]
        if kind == 1:
            self.receipt(at, body)
        elif kind == 2:
            self.wave(at, json.loads(body))
        elif kind == 3:
            self.numbers, self.restarted = {}, json.loads(body)["at"]
            self.notes.append(f"entry {at}: the log lost entries here: its database was restored")
        else:
            self.notes.append(f"entry {at}: a kind that this program does not know")

    def wave(self, at, event):
        waves = [int(upto, 16) for upto in event["waves"]]
        known = self.rollouts.setdefault(event["rollout"], {"waves": waves, "manifest": event["manifest"], "open": 0, "first": event.get("first")})
        if event["open"] < known["open"]:
            self.faults.append(f"entry {at}: rollout {event['rollout']} claims fewer open waves than before")
        if (waves, event["manifest"]) != (known["waves"], known["manifest"]):
            self.faults.append(f"entry {at}: rollout {event['rollout']} has other thresholds than before")
        known["open"], known["under_way"] = max(known["open"], event["open"]), event["state"] in UNDER_WAY

    def receipt(self, at, body):
        key, signature, text = body[:32], body[32:96], body[96:]
        node = hashlib.sha256(SPKI_HEAD + key).digest()[:16]
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, b"distd-receipt-v1\0" + text)
        except InvalidSignature:
            return self.faults.append(f"entry {at}: device {node.hex()} did not sign it")
        number, when, _, manifest, rollout, wave = struct.unpack_from(">QQ16s32s16sB", text)
        names, rest = [], text[81:]
        for _ in range(3):
            names.append(rest[1:1 + rest[0]].decode())
            rest = rest[1 + rest[0]:]
        self.devices[node] = release = f"{names[0]}@{names[1]}"
        self.releases[release] += 1
        last = self.numbers.get(node)
        if last is not None and number > last + 1:
            self.faults.append(f"entry {at}: receipts {last + 1} to {number - 1} of device {node.hex()} are missing")
        elif last is not None and number <= last:
            self.notes.append(f"entry {at}: device {node.hex()} began to number its receipts again")
        self.numbers[node] = number
        if any(rollout):
            known = self.rollouts.get(rollout.hex())
            place = 0 if known and known["first"] and wave == 1 else point(rollout, node)
            if known is None or not is_open(known, place):
                is_old = known is None and number == 1 or when < self.restarted  # the log lacks the waves of that time
                (self.notes if is_old else self.faults).append(
                    f"entry {at}: device {node.hex()} was ahead of its wave in rollout {rollout.hex()}")
            own = known and next((n for n, upto in enumerate(known["waves"], 1) if place <= upto), 0)
            if wave and own and wave != own:
                self.faults.append(f"entry {at}: device {node.hex()} states wave {wave} and is in wave {own}")
            return
        for name, known in self.rollouts.items():
            if known["manifest"] == manifest.hex() and known["under_way"]:
                if not is_open(known, point(bytes.fromhex(name), node)):
                    self.notes.append(f"entry {at}: device {node.hex()} ran the release outside of rollout {name}")


def is_open(rollout, place):
    return rollout["open"] > 0 and place <= rollout["waves"][rollout["open"] - 1]


def main(export, ca_file, *head_files):
    with open(ca_file, "rb") as file:
        ca = x509.load_pem_x509_certificate(file.read()).public_key()
    with open(export, encoding="utf-8") as file:
        head, check, leaves = json.loads(next(file)), Check(), []
        for line in file:
            row = json.loads(line)
            entry = bytes.fromhex(row["entry"])
            if row["number"] != len(leaves):
                check.faults.append(f"entry {len(leaves)} is missing")
            check.entry(len(leaves), entry)
            leaves.append(hashlib.sha256(b"\0" + entry).digest())
    heads = [("the export", head)]
    for name in head_files:
        with open(name, encoding="utf-8") as file:
            heads += [(name, other) for other in heads_in(json.load(file))]
    for name, other in heads:
        text = f"the head of {other['size']} entries in {name}"
        if not is_signed_head(other, ca):
            check.faults.append(f"{text} is not signed by the realm")
        elif other["log"] != head["log"]:
            check.faults.append(f"{text} is of another log")
        elif other["size"] > len(leaves):
            check.faults.append(f"{text} is of a longer log: entries are gone")
        elif tree_hash(leaves[:other["size"]]).hex() != other["root"]:
            check.faults.append(f"{text} is of other entries: the log was rewritten")
    print(f"{len(leaves)} entries, {sum(check.releases.values())} receipts of {len(check.devices)} devices")
    now = Counter(check.devices.values())
    for release, count in sorted(check.releases.items()):
        print(f"{release}: {count} receipts, the newest one of {now[release]} devices")
    for text in [f"note: {note}" for note in check.notes] + [f"FAULT: {fault}" for fault in check.faults]:
        print(text)
    return 1 if check.faults or head["size"] != len(leaves) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error, StopIteration) as error:
        print(f"the log cannot be read: {error!r}\n{__doc__}", file=sys.stderr)
        sys.exit(2)
