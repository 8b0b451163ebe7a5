# Sourced by scripts: programs of a later Debian than this machine's, in a directory; nothing on the machine changes.

# later_debian DIR PACKAGE... : unpacks the packages, with all that they depend on, below DIR/root, and prints that path.
# They are of the release $suite, trixie without one.
later_debian() {
  local dir=$1 main suite=${suite:-trixie} options deb; shift
  if [ ! -e "$dir/complete" ] || [ "$(cat "$dir/complete")" != "$*" ]; then
    rm -rf "$dir"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/root"
    main=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | awk -v s="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$2 == s { print $1; exit }')
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $main $suite main" >"$dir/sources.list"
    options=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$dir/lists"
      -o "Dir::Cache=$dir/cache" -o Dir::State::status=/dev/null -o APT::Install-Recommends=false -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update >&2
    apt-get "${options[@]}" -y --download-only install "$@" >&2
    for deb in "$dir"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
    rm -rf "$dir/cache" "$dir/lists"
    echo "$*" >"$dir/complete"
  fi
  printf '%s\n' "$dir/root"
}
