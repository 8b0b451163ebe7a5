#!/usr/bin/env bash
# The images of deploy/oci.py in real containers, as deploy/compose.yaml starts them: origin, relay and device, each not
# root, on a file system that is read-only, without any capability. A release goes from the one to the other, and an update.
#
#   tests/deploy/images.sh [DIR]     DIR: distd-server.tar, distd-peer.tar, distd-device.tar and distd.tar; default target/oci
#
# Needs root on Debian, podman and PyPI; images and volumes are in a directory of its own, which is removed. By hand.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh

images=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/oci}")
need podman:podman runc:runc python3:python3
# Containers find each other by name.
[ -x /usr/lib/podman/netavark ] || need no-command:netavark
[ -x /usr/lib/podman/aardvark-dns ] || need no-command:aardvark-dns
work=$(mktemp -d "${TMPDIR:-/var/tmp}/distd-images.XXXXXX")
mkdir "$work/bin"
cat >"$work/containers.conf" <<C
[containers]
# Below those of this machine, which a process without CAP_SYS_RESOURCE cannot raise again.
default_ulimits = ["nofile=10000:10000", "nproc=10000:10000"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
C
podman=$(command -v podman)
cat >"$work/bin/podman" <<P
#!/bin/sh
# Checks of health are run by the test: without systemd there is no timer for them.
export CONTAINERS_CONF=$work/containers.conf DISABLE_HC_SYSTEMD=true
exec $podman --root $work/storage --runroot $work/run --tmpdir $work/tmp "\$@"
P
chmod +x "$work/bin/podman"
PATH=$work/bin:$PATH
export DISTD_NAME=origin DISTD_HTTPS_PORT DISTD_NODES_PORT DISTD_RELAY_PORT DISTD_JOIN_TOKEN_FILE=$work/relay.token
DISTD_HTTPS_PORT=$(free_port) DISTD_NODES_PORT=$(free_port) DISTD_RELAY_PORT=$(free_port)
project=distd-images-$$
compose() { "$work/venv/bin/podman-compose" -p "$project" -f deploy/compose.yaml --profile relay "$@"; }
close() {
  compose down -v -t 5 >/dev/null 2>&1 || true
  podman rm -fa >/dev/null 2>&1 || true
  podman network rm -f "${project}_default" >/dev/null 2>&1 || true
  # Mounts of a container that did not end are below it.
  if ! grep -q " $work/" /proc/self/mounts; then rm -rf "$work"; else echo "left: $work" >&2; fi
}
trap close EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
says() { echo "-- $* ($SECONDS s)"; }

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "$(grep podman-compose tests/deploy/requirements.txt)"
for image in distd-server distd-peer distd-device distd; do podman load -q -i "$images/$image.tar" >/dev/null; done
version=$(podman images --format '{{.Tag}}' --filter reference='localhost/distd-server' | head -n 1)
export DISTD_VERSION=$version
says "images of $version"

# As the services of the compose file are contained.
once() { podman run --rm -i --read-only --tmpfs /tmp --cap-drop=all --security-opt=no-new-privileges --network "${project}_default" "$@"; }
admin() { once -v "$project-admin:/var/lib/distd" -v "$work/files:/files:ro" "localhost/distd:$version" "$@"; }
device() { once -v "$project-device:/var/lib/distd" "localhost/distd-device:$version" "$@"; }
container() { podman ps -q --filter "label=com.docker.compose.service=$1"; }
answers() { podman exec "$(container "$1")" "/usr/bin/$2" doctor --answers; }

mkdir "$work/files"
head -c 20000000 /dev/urandom >"$work/files/1.img"
{ cat "$work/files/1.img"; head -c 300000 /dev/urandom; } >"$work/files/2.img"
# The file has to be there before the relay, which is not started yet.
: >"$work/relay.token"
compose up -d origin >"$work/said" 2>&1 || fail "the origin: $(cat "$work/said")"
wait_for 60 answers origin distd-server || fail "the origin does not answer: $(podman logs "$(container origin)" 2>&1 | tail -n 20)"
podman healthcheck run "$(container origin)" || fail "the origin's health"
says "the origin answers"
[ "$(podman exec "$(container origin)" /usr/bin/distd-server --version)" = "distd-server $version" ] || fail "version"
podman exec "$(container origin)" distd-server admin-token >"$work/admin.token"
admin login --server https://origin:7443 --token-file - <"$work/admin.token" >/dev/null
admin -q push /files/1.img --product os --version 1 --channel stable
admin grant add everyone os >/dev/null
says "a release is there"

# A secret of containers: of root, readable by the group of the program.
admin -q token join --role relay >"$work/relay.token"
chown 0:65532 "$work/relay.token"; chmod 440 "$work/relay.token"
compose up -d relay >"$work/said" 2>&1 || fail "the relay: $(cat "$work/said")"
wait_for 60 answers relay distd-peer || fail "the relay does not answer: $(podman logs "$(container relay)" 2>&1 | tail -n 20)"
podman healthcheck run "$(container relay)" || fail "the relay's health"
says "the relay answers"

admin -q token join --role leaf >"$work/device.token"
podman secret create leaf "$work/device.token" >/dev/null
once -v "$project-device:/var/lib/distd" --secret leaf,uid=0,gid=65532,mode=0440 "localhost/distd-device:$version" \
  enroll --parent relay:4433 --token-file /run/secrets/leaf >/dev/null
device -q pull os:stable --out /var/lib/distd/slot
volume=$(podman volume inspect -f '{{.Mountpoint}}' "$project-device")
cmp "$volume/slot" "$work/files/1.img"
admin -q push /files/2.img --product os --version 2 --channel stable
admin patch make os 1 2 --wait >/dev/null
device --json -q pull os:stable --out /var/lib/distd/slot >"$work/pulled"
cmp "$volume/slot" "$work/files/2.img"
device verify /var/lib/distd/slot >/dev/null
python3 - "$work/pulled" <<'S'
import json, sys
pulled = json.loads(open(sys.argv[1]).read().splitlines()[-1])
assert pulled["wire_bytes"] < 1_000_000, pulled
assert pulled["wire_bytes_by_source"]["origin"] == 0, pulled
print(f"{pulled['wire_bytes']} bytes for the update, from the relay")
S
says "a device installed a release and its update"

# An agent as the image starts it.
podman run -d --name "$project-agent" --read-only --tmpfs /tmp --cap-drop=all --security-opt=no-new-privileges \
  --network "${project}_default" -v "$project-device:/var/lib/distd" "localhost/distd-device:$version" >/dev/null
sleep 3
[ "$(podman inspect -f '{{.State.Status}}' "$project-agent")" = running ] || fail "the agent: $(podman logs "$project-agent" 2>&1)"

# Secrets that an origin writes are its own alone, and its keys go to a further one by a file that root granted.
volume=$(podman volume inspect -f '{{.Mountpoint}}' "${project}_origin")
[ -z "$(find "$volume" -mindepth 1 ! -uid 65532)" ] || fail "files of others: $(find "$volume" -mindepth 1 ! -uid 65532)"
[ -z "$(find "$volume" -mindepth 1 -perm /077)" ] || fail "open files: $(find "$volume" -mindepth 1 -perm /077)"
podman exec "$(container origin)" distd-server keys export >"$work/keys.json"
further() { podman run --rm --read-only --cap-drop=all -v "$project-further:/var/lib/distd-server" -v "$work/keys.json:/run/keys.json:ro" "localhost/distd-server:$version" "$@"; }
chown 0:65532 "$work/keys.json"
chmod 444 "$work/keys.json"
if further keys import /run/keys.json >"$work/said" 2>&1; then fail "keys that all may read were taken"; fi
grep -q "is open to others" "$work/said" || fail "keys: $(cat "$work/said")"
chmod 440 "$work/keys.json"
further keys import /run/keys.json | grep -q "has the keys now" || fail "keys were not taken"
further keys import /run/keys.json | grep -q "had them" || fail "keys were taken twice"
says "keys of a further origin"

# All end when they are told to, in good order, as the first process of a container.
for name in "$project-agent" "$(container relay)" "$(container origin)"; do
  podman stop -t 15 "$name" >/dev/null
  [ "$(podman inspect -f '{{.State.ExitCode}}' "$name")" = 0 ] || fail "$name ended with $(podman inspect -f '{{.State.ExitCode}}' "$name"): $(podman logs "$name" 2>&1 | tail -n 5)"
done
compose up -d origin >/dev/null 2>&1
wait_for 60 answers origin distd-server || fail "the origin does not start again"
admin release ls os | grep -q 2 || fail "releases are gone"
says "stopped and started again"
for image in distd-server distd-peer distd-device distd; do
  echo "$(stat -c %s "$images/$image.tar") bytes of $image.tar, $(podman image inspect -f '{{.Size}}' "localhost/$image:$version") unpacked"
done
echo "images in containers: $SECONDS s"
