#!/usr/bin/env bash
# Whoever packs blocks of a squashfs or EROFS image again, bit for bit, expects zstd 1.5.x to make the bytes that another
# 1.5.x made at the same level: only the format is promised, but the series looks like one encoder. It is not: some levels
# pack all blocks of 128 KiB to other bytes, others some blocks, so an image made on one distribution cannot be made
# again on the next one.
# Seen with zstandard 0.20.0, 0.22.0, 0.23.0 and 0.25.0 of PyPI, which have the libraries 1.5.4, 1.5.5, 1.5.6 and 1.5.7.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
cat >pack.py <<'P'
import hashlib, random, zstandard
random.seed(1)
letters = range(97, 123)
words = [bytes(random.choices(letters, k=random.randrange(3, 9))) for _ in range(3000)]
text = b" ".join(random.choices(words, k=450_000))
blocks = [text[at : at + 131072] for at in range(0, len(text) - 131072, 131072)]
version = ".".join(map(str, zstandard.ZSTD_VERSION))
for level in (3, 9, 12, 15, 19, 22):
    packed = [zstandard.ZstdCompressor(level=level).compress(block) for block in blocks]
    print(level, version, *(hashlib.sha256(one).hexdigest()[:12] for one in packed))
P
for version in 0.20.0 0.22.0 0.23.0 0.25.0; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/pip" install -q "zstandard==$version"
    "venv-$version/bin/python" pack.py >>all
done
python3 - <<'P' | tee seen
rows = {}
for line in open("all"):
    level, version, *hashes = line.split()
    rows.setdefault(int(level), {})[version] = hashes
for level, of in sorted(rows.items()):
    newest = of["1.5.7"]
    same = [f"{version}: {sum(one == other for one, other in zip(hashes, newest))}" for version, hashes in of.items()]
    print(f"level {level}, of {len(newest)} blocks the same as 1.5.7:", ", ".join(same))
P
diff - seen <<'S'
level 3, of 22 blocks the same as 1.5.7: 1.5.4: 0, 1.5.5: 0, 1.5.6: 0, 1.5.7: 22
level 9, of 22 blocks the same as 1.5.7: 1.5.4: 0, 1.5.5: 22, 1.5.6: 22, 1.5.7: 22
level 12, of 22 blocks the same as 1.5.7: 1.5.4: 22, 1.5.5: 22, 1.5.6: 22, 1.5.7: 22
level 15, of 22 blocks the same as 1.5.7: 1.5.4: 21, 1.5.5: 21, 1.5.6: 22, 1.5.7: 22
level 19, of 22 blocks the same as 1.5.7: 1.5.4: 20, 1.5.5: 20, 1.5.6: 22, 1.5.7: 22
level 22, of 22 blocks the same as 1.5.7: 1.5.4: 20, 1.5.5: 20, 1.5.6: 22, 1.5.7: 22
S
