#!/usr/bin/env python3
"""An outside TUF client (python-tuf) against distd's repository.

    tuf_check.py --cases DIR
        Runs over the repositories that `cargo run -p distd-server --example tuf-cases -- DIR` wrote: the good ones
        must verify, the bad ones must be refused.

    tuf_check.py --repo URL|DIR --root root.json --target releases/PRODUCT/VERSION [--ca ca.pem] [--out FILE]
        Fetches and verifies one target, for example from https://HOST:PORT/tuf/.

Prints one line per check; exit code 1 when one fails. Needs: pip install tuf
"""

import argparse
import json
import pathlib
import ssl
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface, Updater


class Fetcher(FetcherInterface):
    """file:, http: and https: with one CA."""

    def __init__(self, ca=None):
        self.context = ssl.create_default_context(cafile=ca)

    def _fetch(self, url):
        try:
            with urllib.request.urlopen(url, context=self.context, timeout=30) as response:
                yield response.read()
        except urllib.error.HTTPError as e:
            raise exceptions.DownloadHTTPError(str(e), e.code) from e
        except (urllib.error.URLError, OSError) as e:
            # A missing local file corresponds to 404 over HTTP.
            if url.startswith("file:") and "No such file" in str(e):
                raise exceptions.DownloadHTTPError(str(e), 404) from e
            raise


class Client:
    """A client with its own trusted state."""

    def __init__(self, root, ca=None):
        self.root = root
        self.fetcher = Fetcher(ca)
        self.dir = tempfile.TemporaryDirectory()

    def fetch(self, repo, target):
        """The verified bytes of a target; raises when they cannot be verified."""
        base = repo if "://" in repo else pathlib.Path(repo).resolve().as_uri()
        base = base.rstrip("/") + "/"
        updater = Updater(
            metadata_dir=self.dir.name,
            metadata_base_url=base,
            target_base_url=base + "targets/",
            fetcher=self.fetcher,
            # Once a trusted root is on disk, the update starts from that root.
            bootstrap=None if (pathlib.Path(self.dir.name) / "root.json").exists() else self.root,
        )
        updater.refresh()
        info = updater.get_targetinfo(target)
        if info is None:
            raise LookupError(f"no target {target}")
        with tempfile.TemporaryDirectory() as out:
            return pathlib.Path(updater.download_target(info, out + "/target")).read_bytes()


def check_cases(directory):
    root = (directory / "root.json").read_bytes()
    failed = 0
    for case in json.loads((directory / "cases.json").read_text()):
        client = Client(root)
        if not case["fresh"]:
            client.fetch(str(directory / "good"), "releases/os/2")
        try:
            data = client.fetch(str(directory / case["dir"]), case["target"])
            outcome, refused = f"accepted, {len(data)} bytes", False
        except (exceptions.RepositoryError, exceptions.DownloadError, LookupError, ValueError) as e:
            outcome, refused = f"refused: {type(e).__name__}", True
        ok = refused == (case["refused"] is not None)
        failed += not ok
        print(f"{'ok' if ok else 'FAILED'} {case['dir']}: {case['about']}: {outcome}")
    return failed


def check_repo(args):
    try:
        data = Client(args.root.read_bytes(), args.ca).fetch(args.repo, args.target)
    except Exception as e:  # whatever it is, it is the one line to print
        print(f"FAILED {args.target}: {type(e).__name__}: {e}")
        return 1
    if args.out:
        args.out.write_bytes(data)
    print(f"ok {args.target}: verified, {len(data)} bytes")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=pathlib.Path)
    parser.add_argument("--repo")
    parser.add_argument("--root", type=pathlib.Path)
    parser.add_argument("--target")
    parser.add_argument("--ca")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    if args.cases:
        failed = check_cases(args.cases)
    elif args.repo and args.root and args.target:
        failed = check_repo(args)
    else:
        parser.error("give --cases DIR, or --repo, --root and --target")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
