#!/usr/bin/env bash
# Runs the real clients of hawkBit's DDI against an origin: rauc-hawkbit-updater with RAUC from Debian forky, SWUpdate from
# Debian 13. Their programs are installed into roots of their own, which are kept for the next run. Needs root and network.
#
# usage: tests/hawkbit/run.sh [DIRECTORY]     where the roots are [default: /var/tmp/distd-hawkbit]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
roots=${1:-/var/tmp/distd-hawkbit}
# The archive that this machine uses.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | awk -v s="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$2 == s { print $1; exit }')
need mmdebstrap:mmdebstrap

# root NAME SUITE PACKAGE,...: a root with these packages, made whole or not at all.
root() {
  [ -d "$roots/$1" ] && return 0
  rm -rf "$roots/$1.new"
  mmdebstrap --variant=minbase --mode=root --include="$3" "$2" "$roots/$1.new" "$mirror"
  mv "$roots/$1.new" "$roots/$1"
}

mkdir -p "$roots"
root rauc forky rauc-hawkbit-updater,rauc,dbus,squashfs-tools,openssl
root swupdate trixie swupdate,cpio
# RAUC mounts bundles, and both look at /proc.
mounted=()
cleanup() { for at in "${mounted[@]}"; do umount "$at"; done; }
trap cleanup EXIT
for name in rauc swupdate; do
  mount -t proc proc "$roots/$name/proc"; mounted+=("$roots/$name/proc")
  mount --bind /dev "$roots/$name/dev"; mounted+=("$roots/$name/dev")
done
export DISTD_TEST_RAUC_ROOT=$roots/rauc DISTD_TEST_SWUPDATE_ROOT=$roots/swupdate
cargo nextest run -p distd-server --test http --locked -E 'test(ddi_clients::)'
