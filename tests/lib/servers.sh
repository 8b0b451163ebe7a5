# Sourced by scripts after install.sh: a PostgreSQL and an S3 server (moto) of their own, on free ports.

# PostgreSQL refuses to run as root.
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid "$pg_user" --regid "$pg_user" --clear-groups "$@"; else "$@"; fi; }

# start_postgres DIR : starts a server with its data in DIR/pg; sets DISTD_TEST_POSTGRES_URL.
start_postgres() {
  pg_bin=$(postgres_bin)
  pg_user=postgres; id "$pg_user" >/dev/null 2>&1 || pg_user=nobody
  pg_data=$1/pg
  mkdir "$pg_data"; [ "$(id -u)" != 0 ] || chown "$pg_user" "$pg_data"
  pg_port=$(free_port)
  as_postgres "$pg_bin/initdb" -D "$pg_data" -U distd -A trust >/dev/null
  as_postgres "$pg_bin/pg_ctl" -D "$pg_data" -w -o "-p $pg_port -k $pg_data -c listen_addresses=127.0.0.1 -c fsync=off" -l "$pg_data/log" start >/dev/null
  export DISTD_TEST_POSTGRES_URL="postgres://distd@127.0.0.1:$pg_port/postgres"
}

# Ends the server that start_postgres has started, if there is one.
stop_postgres() {
  if [ -n "${pg_bin:-}" ] && [ -d "${pg_data:-}" ]; then as_postgres "$pg_bin/pg_ctl" -D "$pg_data" -m immediate stop >/dev/null 2>&1 || true; fi
}

# start_s3 DIR : starts moto in a Python environment in DIR/venv; sets DISTD_TEST_S3_URL, python and s3_pid.
start_s3() {
  local port
  python=$1/venv/bin/python
  python3 -m venv "$1/venv"
  "$1/venv/bin/pip" install -q --disable-pip-version-check -r tests/python/requirements.txt
  port=$(free_port)
  "$1/venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$1/moto.log" 2>&1 & s3_pid=$!
  export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test
  wait_for 30 curl -fs "http://127.0.0.1:$port/moto-api/"
  curl -fs -X PUT "http://127.0.0.1:$port/distd" >/dev/null
  export DISTD_TEST_S3_URL="s3://distd/contract?endpoint=http://127.0.0.1:$port&region=us-east-1"
}
