#!/usr/bin/env python3
"""Checks of the tree that the compiler cannot make: licences and sources of dependencies, the top level, keys."""
import json
import pathlib
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD", "Unlicense", "CC0-1.0", "BSL-1.0",
    "Unicode-3.0", "Unicode-DFS-2016", "CDLA-Permissive-2.0", "Apache-2.0 WITH LLVM-exception", "OpenSSL", "MIT-0",
}
TOP = {"Cargo.toml", "Cargo.lock", "distd-core", "distd-server", "distd-peer", "distd-client", "deploy", "docs", "findings", "tests",
       "README.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE-APACHE", "LICENSE-MIT", "justfile", "rust-toolchain.toml"}
# Longest comment line in Rust, columns; rustfmt does not wrap comments.
COMMENT_COLUMNS = 100
failures = []


def licence_ok(expression):
    """True if the SPDX expression has a choice of its ORs in which every licence is allowed."""
    expression = expression.replace("/", " OR ")
    tokens = re.findall(r"\(|\)|AND|OR|[^\s()]+(?: WITH [^\s()]+)?", expression)

    def parse_or(i):
        value, i = parse_and(i)
        while i < len(tokens) and tokens[i] == "OR":
            right, i = parse_and(i + 1)
            value = value or right
        return value, i

    def parse_and(i):
        value, i = parse_atom(i)
        while i < len(tokens) and tokens[i] == "AND":
            right, i = parse_atom(i + 1)
            value = value and right
        return value, i

    def parse_atom(i):
        if tokens[i] == "(":
            value, i = parse_or(i + 1)
            return value, i + 1
        return tokens[i] in ALLOWED, i + 1

    return parse_or(0)[0]


metadata = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True,
                                     capture_output=True, text=True).stdout)
for package in metadata["packages"]:
    source = package["source"]
    if source is not None and not source.startswith("registry+"):
        failures.append(f"{package['name']}: source {source} is not a registry")
    licence = package["license"]
    if licence is None or not licence_ok(licence):
        failures.append(f"{package['name']} {package['version']}: licence {licence}")
    # Our own crates, wherever they are.
    if source is None:
        manifest = pathlib.Path(package["manifest_path"]).read_text()
        if "[lints]\nworkspace = true" not in manifest:
            failures.append(f"{package['name']}: does not take the workspace's lints")
        if "license.workspace = true" not in manifest:
            failures.append(f"{package['name']}: does not take the workspace's licence")

tracked = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.splitlines()
for path in tracked:
    top = path.split("/")[0]
    if top not in TOP and not top.startswith("."):
        failures.append(f"{path}: not one of the places the README names")
    file = pathlib.Path(path)
    if not file.is_file():
        continue
    data = file.read_bytes()
    if len(data) > 2_000_000:
        failures.append(f"{path}: {len(data)} bytes is too large to keep in the repository")
    if file.suffix == ".rs":
        for number, line in enumerate(data.decode().splitlines(), 1):
            # A link cannot be broken, and text in a string is no comment.
            if len(line) > COMMENT_COLUMNS and re.match(r"\s*//", line) and "://" not in line:
                failures.append(f"{path}:{number}: a comment of {len(line)} columns, more than {COMMENT_COLUMNS}")
    if b"PRIVATE KEY-----" in data and file.suffix not in {".rs", ".py"}:
        failures.append(f"{path}: holds a private key")

for failure in failures:
    print(f"check_tree: {failure}", file=sys.stderr)
print(f"checked {len(metadata['packages'])} packages and {len(tracked)} files: {len(failures)} problems")
sys.exit(1 if failures else 0)
