# Sourced by scripts: installs missing programs, once.

# need COMMAND:PACKAGE ... : installs the Debian packages whose command is missing.
need() {
  local missing=() pair
  for pair in "$@"; do command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}"); done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Prints the directory of PostgreSQL's server binaries, after installing them if they are missing.
postgres_bin() {
  local dir
  if ! ls -d /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    need initdb:postgresql >&2
  fi
  dir=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  printf '%s\n' "$dir"
}

# Prints a free TCP port on loopback.
free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }

# wait_for SECONDS COMMAND... : repeats the command until it succeeds.
wait_for() {
  local deadline=$(( $(date +%s) + $1 )); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$deadline" ] || { echo "gave up waiting for: $*" >&2; return 1; }
    sleep 0.1
  done
}
