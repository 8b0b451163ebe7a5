#!/usr/bin/env bash
# The packages on booted Debian systems: runs exactly the commands of docs/install.md, with a person's browser on the
# origin's page, then hangs a program, hands a secret over as a credential, upgrades, removes, purges and installs again.
#
# run.sh PACKAGES: PACKAGES is a directory with the packages of deploy/packages.sh.
# Needs root, mmdebstrap, and for the browser DISTD_TEST_WEB and DISTD_TEST_BROWSER of tests/run.sh. DISTD_TEST_DEBIAN_ROOT
# is an archive of a Debian root; one is made where it is not there yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
. tests/lib/machine.sh
packages=$(realpath "${1:?a directory with packages}")

if ! why=$(machines_can); then
  echo "NOT RUN: the packages on booted systems: $why"
  exit 0
fi
machines_dir=$(mktemp -d)
trap 'machines_close; rm -rf "$machines_dir"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
says() { echo "-- $* ($SECONDS s)"; }

root=${DISTD_TEST_DEBIAN_ROOT:-$PWD/target/tmp/debian.tar}
debian_root "$root"
machines_open "$root"
for name in origin device relay; do
  case $name in origin) number=2 ;; device) number=3 ;; relay) number=4 ;; esac
  machine_boot $name $number updates.example.com:2 relay.example.com:4
  # The watchdog's minute is short here, so that the test need not wait for it.
  for unit in distd-server distd-peer distd-agent; do
    machine $name mkdir -p /etc/systemd/system/$unit.service.d
    printf '[Service]\nWatchdogSec=3\n' >"$(machine_files $name)/../etc/systemd/system/$unit.service.d/test.conf"
  done
done
says "three systems are up"
files=$(machine_files origin)
cp "$packages"/*.deb "$files/"; cp "$packages"/distd_*.deb "$(machine_files device)/"; cp "$packages"/distd-peer_*.deb "$(machine_files relay)/"
head -c 3000000 /dev/urandom >"$files/image-v1.erofs"
{ cat "$files/image-v1.erofs"; head -c 100000 /dev/urandom; } >"$files/image-v2.erofs"

# The same packages with a later version.
later() {
  local package place=$machines_dir/later
  mkdir "$place"
  for package in "$packages"/distd-server_*.deb "$packages"/distd_*.deb; do
    dpkg-deb -R "$package" "$place/parts"
    sed -i 's/^Version: .*/&+later/' "$place/parts/DEBIAN/control"
    dpkg-deb -Znone -b "$place/parts" "$place/" >/dev/null
    rm -rf "$place/parts"
  done
}

# The commands of the page, in its order; those behind "A relay" too.
mapfile -t commands < <(sed -n '/^```console$/,/^```$/ s/^\([a-z]*\)# /\1 /p' docs/install.md)
ten=$(sed -n '/^## Ten commands/,/^## A relay/p' docs/install.md | grep -c '^[a-z]*# ')
[ "$ten" -le 10 ] || fail "the page has $ten commands"
[ ${#commands[@]} -eq $((ten + 3)) ] || fail "the page has ${#commands[@]} commands; expected $ten and three for the relay"

browse() {
  if [ -z "${DISTD_TEST_WEB:-}" ]; then echo "NOT RUN: the browser; tests/run.sh sets DISTD_TEST_WEB"; return; fi
  in_network env ORIGIN="https://$machines_network.2:7443" TOKEN="$(machine origin cat /var/lib/distd-server/admin.token)" \
    BROWSER="$DISTD_TEST_BROWSER" node "$DISTD_TEST_WEB/install.mjs" "$1"
}
device_runs() { machine device readlink /var/lib/distd/os/current | grep -qx "releases/$1"; }
is_active() { [ "$(machine "$1" systemctl is-active "$2")" = active ]; }
runs_as() { machine "$1" systemctl show -P MainPID "$2"; }

done=0
for command in "${commands[@]}"; do
  place=${command%% *} line=${command#* }
  case $line in
    *"push image-v2"*)
      wait_for 60 device_runs 1 || fail "the device does not install release 1"
      browse device; says "the page shows the device" ;;
    "distd enroll"*) cp "$files/device.token" "$(machine_files device)/" ;;
    "distd-peer init"*) cp "$files/relay.token" "$(machine_files relay)/" ;;
  esac
  machine "$place" bash -c "$line" >"$machines_dir/said" 2>&1 || fail "$place# $line: $(cat "$machines_dir/said")"
  says "$place# $line"
  done=$((done + 1))
  if [ $done = "$ten" ]; then
    browse rollout
    wait_for 60 device_runs 2 || fail "the device does not install release 2"
    says "the page showed the rollout to its end"
  fi
done
for pair in origin:distd-server device:distd-agent relay:distd-peer; do
  is_active "${pair%:*}" "${pair#*:}" || fail "${pair#*:} does not run"
done
[ "$(machine origin stat -c '%U %a' /etc/distd/server.toml /var/lib/distd-server | tr '\n' ' ')" = "root 640 distd-server 700 " ] || fail "owners and modes"
machine relay grep -q DISTD_JOIN_TOKEN= /etc/distd/peer.env
[ "$(machine relay stat -c %a /etc/distd/peer.env)" = 600 ] || fail "the join token is open to others"

# A program that hangs is ended and started again, and one that ends by itself says so.
declare -A before
for pair in origin:distd-server device:distd-agent relay:distd-peer; do
  place=${pair%:*} unit=${pair#*:}
  [ "$(machine "$place" systemctl show -P Type "$unit")" = notify ] || fail "$unit says nothing to systemd"
  before[$place]=$(runs_as "$place" "$unit")
  machine "$place" bash -c "kill -STOP ${before[$place]}"
done
for pair in origin:distd-server device:distd-agent relay:distd-peer; do
  place=${pair%:*} unit=${pair#*:}
  again() { is_active "$place" "$unit" && [ "$(runs_as "$place" "$unit")" != "${before[$place]}" ]; }
  wait_for 30 again || fail "$unit hangs and is not started again"
  machine "$place" journalctl -u "$unit" | grep -q "Watchdog timeout" || fail "$unit was not ended by the watchdog"
done
says "programs that hang were started again"

# A credential of systemd, for a user without rights.
cat >"$files/../etc/systemd/system/credential.service" <<'UNIT'
[Service]
Type=oneshot
DynamicUser=yes
LoadCredential=token:/var/lib/distd-server/admin.token
Environment=DISTD_DATA=/tmp/state
ExecStart=/usr/bin/distd whoami --server https://127.0.0.1:7443 --token-file %d/token
UNIT
machine origin systemctl daemon-reload
machine origin systemctl start credential || fail "a credential is no token: $(machine origin journalctl -u credential)"
says "a credential was taken"

# An upgrade keeps settings, data and what is enabled, and starts the new program.
machine origin sh -c 'echo "zstd_level = 3" >>/etc/distd/server.toml'
origin=$(runs_as origin distd-server) agent=$(runs_as device distd-agent)
later
for name in origin device; do
  rm "$(machine_files $name)"/*.deb
  cp "$machines_dir"/later/*.deb "$(machine_files $name)/"
done
machine origin sh -c "apt-get install -y ./distd-server_*.deb ./distd_*.deb" >"$machines_dir/said" 2>&1 ||
  fail "the upgrade: $(cat "$machines_dir/said")"
machine device sh -c "apt-get install -y ./distd_*.deb" >/dev/null 2>&1
machine origin grep -q "zstd_level = 3" /etc/distd/server.toml || fail "the upgrade changed the settings"
[ "$(runs_as origin distd-server)" != "$origin" ] && is_active origin distd-server || fail "the upgrade does not start the new origin"
[ "$(runs_as device distd-agent)" != "$agent" ] && is_active device distd-agent || fail "the upgrade does not start the new agent"
machine origin sh -c 'distd fleet status >/dev/null' || fail "the origin answers no more"
says "upgraded"

# Settings are changed with the difference shown, and not without consent.
if machine origin distd-server init --zstd-level 5 </dev/null >"$machines_dir/said" 2>&1; then fail "init wrote without consent"; fi
grep -q -- '^- zstd_level = 3' "$machines_dir/said" && grep -q -- '^+ zstd_level = 5' "$machines_dir/said" || fail "init shows no difference: $(cat "$machines_dir/said")"
machine origin grep -q "zstd_level = 3" /etc/distd/server.toml || fail "init wrote without consent"

# Removal keeps settings and data; purge keeps the data.
key=$(machine origin sha256sum /var/lib/distd-server/realm/ca.key)
machine origin apt-get remove -y distd-server >/dev/null 2>&1
if is_active origin distd-server; then fail "a removed origin runs"; fi
machine origin test -e /etc/distd/server.toml -a ! -e /usr/bin/distd-server || fail "removal"
machine origin apt-get purge -y distd-server >"$machines_dir/said" 2>&1
grep -q "/var/lib/distd-server stays" "$machines_dir/said" || fail "purge says nothing of the data: $(cat "$machines_dir/said")"
machine origin test ! -e /etc/distd/server.toml || fail "purge leaves the settings"
[ "$(machine origin sha256sum /var/lib/distd-server/realm/ca.key)" = "$key" ] || fail "purge touched the realm's keys"
machine relay apt-get purge -y distd-peer >/dev/null 2>&1
machine relay test ! -e /etc/distd/peer.env -a ! -e /var/lib/distd-peer/cache -a -e /var/lib/distd-peer/node.key || fail "purge of a relay"
machine device apt-get purge -y distd >/dev/null 2>&1
device_runs 2 && machine device test -e /var/lib/distd/node.key || fail "purge of a device touched what it runs"
for name in origin relay device; do
  [ -z "$(machine $name find /etc/distd /etc/systemd/system -name 'distd*' ! -name '*.d' 2>/dev/null)" ] || fail "purge leaves files on $name"
done
# The same realm goes on after another installation.
machine origin sh -c "apt-get install -y ./distd-server_*.deb && distd-server init --name updates.example.com --yes --start" >"$machines_dir/said" 2>&1 ||
  fail "installed again: $(cat "$machines_dir/said")"
machine origin distd fleet status >/dev/null || fail "the realm does not go on"
echo "the packages on booted systems: $SECONDS s"
