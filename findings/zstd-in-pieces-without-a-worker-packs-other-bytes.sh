#!/usr/bin/env bash
# Whoever packs a zstd frame again, bit for bit (an initrd, a kernel, a layer), expects the same library, level and flags
# to give the same bytes. They do not: content that is given to the library in pieces is packed differently with one
# worker thread and with none. The tool zstd has one worker by default, so a re-packer that streams through the library
# needs the worker too; the whole content in one call needs none, and takes the memory for all of it. The lengths may be
# equal, so a comparison of sizes does not show it.
# Seen with zstd 1.5.4+dfsg2-5+deb12u1 of Debian 12, and zstandard 0.20.0 of PyPI, which has the library 1.5.4.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq zstd=1.5.4+dfsg2-5+deb12u1 libzstd1=1.5.4+dfsg2-5+deb12u1 >/dev/null 2>&1
for deb in *.deb; do dpkg-deb -x "$deb" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
python3 -m venv venv && venv/bin/pip install -q zstandard==0.20.0
cat >pack.py <<'P'
import random, subprocess, zstandard
random.seed(1)
letters = range(97, 123)
words = [bytes(random.choices(letters, k=random.randrange(3, 9))) for _ in range(3000)]
text = b" ".join(random.choices(words, k=1_500_000))
open("text", "wb").write(text)
tool = subprocess.run(["root/usr/bin/zstd", "-q", "-9", "-c", "text"], check=True, capture_output=True).stdout
alone = subprocess.run(["root/usr/bin/zstd", "-q", "-9", "--single-thread", "-c", "text"], check=True, capture_output=True).stdout
def packer(workers):
    settings = zstandard.ZstdCompressionParameters.from_level(9, write_checksum=1, threads=workers)
    return zstandard.ZstdCompressor(compression_params=settings)
def pieces(workers):
    stream = packer(workers).compressobj(size=len(text))
    made = [stream.compress(text[at : at + 131072]) for at in range(0, len(text), 131072)]
    return b"".join(made) + stream.flush()
print("library", ".".join(map(str, zstandard.ZSTD_VERSION)))
print("in one call, no worker:", packer(0).compress(text) == tool)
print("in pieces, one worker:", pieces(1) == tool)
print("in pieces, no worker:", pieces(0) == tool, "but as the tool without a thread:", pieces(0) == alone)
P
venv/bin/python pack.py | tee seen
diff - seen <<'S'
library 1.5.4
in one call, no worker: True
in pieces, one worker: True
in pieces, no worker: False but as the tool without a thread: True
S
