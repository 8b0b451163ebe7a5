#!/usr/bin/env bash
# 200 rounds (the first argument sets another number) of faults of two origins on one database and one bucket: killed,
# frozen, cut off from database or store, a store that is slow, throttles or breaks off, PostgreSQL restarted.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
. tests/lib/servers.sh
need curl:curl python3:python3
work=$(mktemp -d); chmod 755 "$work"
trap 'stop_postgres; [ -z "${s3_pid:-}" ] || kill "$s3_pid" 2>/dev/null || true; rm -rf "$work"' EXIT
start_postgres "$work"
start_s3 "$work"
# The test restarts the server by this program.
restart=$work/restart
as_user=; [ "$(id -u)" != 0 ] || as_user="setpriv --reuid $pg_user --regid $pg_user --clear-groups"
printf '#!/bin/sh\nexec %s %s/pg_ctl -D %s -m immediate -w restart >/dev/null\n' "$as_user" "$pg_bin" "$pg_data" >"$restart"
chmod 755 "$restart"
export DISTD_TEST_POSTGRES_RESTART=$restart
export DISTD_TEST_ROUNDS=${1:-200} DISTD_TEST_RNG_SEED=${DISTD_TEST_RNG_SEED:-$RANDOM}
cargo build --workspace --bins --tests --locked
cargo nextest run --workspace --test replicas --locked --no-capture -E 'test(faults_of_replicas)'
