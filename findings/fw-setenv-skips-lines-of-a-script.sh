#!/usr/bin/env bash
# Two packages have the program fw_setenv, which sets variables of U-Boot's environment; `fw_setenv -s FILE` sets several
# in one write. The one of U-Boot's own tools reads lines `NAME VALUE`, as its help says. That of libubootenv, which
# Debian 12 has alone, reads lines `NAME=VALUE`, skips all others without a word, and ends with status 0. An updater that
# orders a slot in the first form has ordered nothing, and restarts into the slot that it has. It should write
# `NAME=VALUE`, and read the variables back.
# Seen with libubootenv-tool 0.3.2-1 of Debian 12.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq libubootenv-tool=0.3.2-1 libubootenv0.1=0.3.2-1 >/dev/null 2>&1
for deb in *.deb; do dpkg-deb -x "$deb" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
set_script() { root/usr/bin/fw_setenv -c config -s - ; }
slot() { root/usr/bin/fw_printenv -c config -n slot; }
truncate -s 32K env
printf '%s 0x0 0x4000\n%s 0x4000 0x4000\n' "$work/env" "$work/env" >config
echo 'slot=a' >defaults
root/usr/bin/fw_setenv -c config -f defaults bootdelay 1 >/dev/null 2>&1
echo "begins with: $(slot)"
printf 'slot b\n' | set_script && echo "after 'slot b', exit 0: $(slot)"
first=$(slot)
printf 'slot=b\n' | set_script && echo "after 'slot=b', exit 0: $(slot)"
[ "$first" = a ] && [ "$(slot)" = b ]
# Seen:
#   begins with: a
#   after 'slot b', exit 0: a
#   after 'slot=b', exit 0: b
