#!/usr/bin/env bash
# tough 0.24.0 (crate) and python-tuf 6.0.0 on one valid repository whose targets role delegates to four roles, each
# for paths of its own, all listed in the snapshot.
#
# Expected of a TUF client: to find a target it loads the delegated roles on the way to it (specification 1.0.33,
# section 5.6.7: a search, depth first). python-tuf does so: one role for one target.
# Seen: tough's `RepositoryLoader::load` loads all four before any target is named. Spreading targets over hashed bins,
# so that a client need not receive them all, therefore saves a repository's tough clients nothing.
#
# Output seen:
#   tough: 1.role0.json 1.role1.json 1.role2.json 1.role3.json
#   python-tuf, for role2/file: 1.role2.json
#
# Needs cargo and python3; some 70 s.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check tuf==6.0.0 'securesystemslib[crypto]==1.3.0'
cat >make.py <<'P'
import datetime, hashlib, pathlib, sys
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (DelegatedRole, Delegations, MetaFile, Metadata, Root, Snapshot, TargetFile, Targets,
                              Timestamp)

out = pathlib.Path(sys.argv[1])
out.mkdir()
key = CryptoSigner.generate_ed25519()
end = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(days=1)


def write(name, signed):
    metadata = Metadata(signed)
    metadata.sign(key)
    metadata.to_file(str(out / name))


root = Root(expires=end, consistent_snapshot=True)
for role in ["root", "targets", "snapshot", "timestamp"]:
    root.add_key(key.public_key, role)
keyid = key.public_key.keyid
names = [f"role{n}" for n in range(4)]
roles = {name: DelegatedRole(name, [keyid], 1, True, paths=[f"{name}/*"]) for name in names}
targets, snapshot = Targets(expires=end), Snapshot(expires=end)
targets.delegations = Delegations({keyid: key.public_key}, roles)
for name in names:
    role = Targets(expires=end)
    role.targets[f"{name}/file"] = TargetFile.from_data(f"{name}/file", b"content", ["sha256"])
    write(f"1.{name}.json", role)
    snapshot.meta[f"{name}.json"] = MetaFile(1)
write("1.root.json", root)
write("1.targets.json", targets)
write("1.snapshot.json", snapshot)
write("timestamp.json", Timestamp(expires=end))
P
cat >load.py <<'P'
import pathlib, sys, tempfile
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

repo, seen = pathlib.Path(sys.argv[1]), []


class Recording(FetcherInterface):
    def _fetch(self, url):
        path = pathlib.Path(url.removeprefix("file://"))
        seen.append(path.name)
        if not path.exists():
            raise DownloadHTTPError("missing", 404)
        yield path.read_bytes()


base = repo.as_uri() + "/"
with tempfile.TemporaryDirectory() as state:
    first = (repo / "1.root.json").read_bytes()
    updater = Updater(state, base, target_base_url=base, fetcher=Recording(), bootstrap=first)
    updater.refresh()
    assert updater.get_targetinfo("role2/file") is not None
print(" ".join(sorted(name for name in seen if "role" in name)))
P
mkdir -p loads/src
cat >loads/Cargo.toml <<'T'
[package]
name = "loads"
version = "0.0.0"
edition = "2021"

[dependencies]
async-trait = "0.1"
tokio = { version = "1", default-features = false, features = ["rt", "macros"] }
tough = { version = "=0.24.0", default-features = false }
url = "2"

[profile.dev]
debug = false
T
cat >loads/src/main.rs <<'R'
use std::sync::{Arc, Mutex};

use tough::{FilesystemTransport, RepositoryLoader, Transport, TransportError, TransportStream};
use url::Url;

#[derive(Clone, Debug)]
struct Recording(Arc<Mutex<Vec<String>>>);

#[async_trait::async_trait]
impl Transport for Recording {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let name = url.path_segments().and_then(|parts| parts.last()).unwrap_or_default().to_owned();
        self.0.lock().unwrap().push(name);
        FilesystemTransport.fetch(url).await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let root = std::fs::read(format!("{dir}/1.root.json")).unwrap();
    let base = Url::from_directory_path(&dir).unwrap();
    let seen = Recording(Arc::default());
    RepositoryLoader::new(&root, base.clone(), base).transport(seen.clone()).load().await.unwrap();
    let mut names = seen.0.lock().unwrap().clone();
    names.retain(|name| name.contains("role"));
    names.sort();
    println!("{}", names.join(" "));
}
R
cargo build -q --manifest-path loads/Cargo.toml
venv/bin/python make.py "$work/repo"
tough=$(loads/target/debug/loads "$work/repo")
python=$(venv/bin/python load.py "$work/repo")
echo "tough: $tough"
echo "python-tuf, for role2/file: $python"
[ "$tough" = "1.role0.json 1.role1.json 1.role2.json 1.role3.json" ] && [ "$python" = "1.role2.json" ]
