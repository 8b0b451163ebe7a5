#!/usr/bin/env bash
# fw_printenv reads U-Boot's environment from a running system. Where the file of defaults is there
# (/etc/u-boot-initial-env, or -f FILE) and the checksum of the stored environment is wrong, it prints the defaults, with a
# warning on standard error alone, and ends with status 0; fw_setenv then writes these defaults with one more variable
# over whatever was stored. A wrong offset in fw_env.config looks the same. An updater that trusts the status takes a
# stranger's environment for the board's, and gives it a valid checksum. It should look for a variable that only this
# board's environment has before it writes.
# Seen with libubootenv-tool 0.3.2-1 of Debian 12.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq libubootenv-tool=0.3.2-1 libubootenv0.1=0.3.2-1 >/dev/null 2>&1
for deb in *.deb; do dpkg-deb -x "$deb" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
truncate -s 16K env
printf '%s 0x0 0x4000\n' "$work/env" >config
echo 'bootcmd=run factory' >defaults
print() { root/usr/bin/fw_printenv -c config -f defaults bootcmd 2>warning; }
echo "an environment of zeros, exit 0: $(print); $(cat warning)"
first=$(print)
root/usr/bin/fw_setenv -c config -f defaults slot b 2>/dev/null && echo "fw_setenv slot b, exit 0"
after=$(root/usr/bin/fw_printenv -c config bootcmd 2>warning)
echo "what is stored now, without defaults: $after; warnings: $(wc -l <warning)"
[ "$first" = 'bootcmd=run factory' ] && [ "$after" = "$first" ] && [ ! -s warning ]
# Seen:
#   an environment of zeros, exit 0: bootcmd=run factory; Cannot read environment, using default
#   fw_setenv slot b, exit 0
#   what is stored now, without defaults: bootcmd=run factory; warnings: 0
