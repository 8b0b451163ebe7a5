# Sourced by scripts: a mkfs.erofs that can pack with deflate, zstd and lzma too.

# newer_erofs DIR : prints its path. This is the machine's own mkfs.erofs if it can, otherwise that of a later Debian
# release, unpacked below DIR with its libraries; nothing on the machine changes.
newer_erofs() {
  local dir=$1 main suite=trixie options deb root
  if mkfs.erofs --help 2>&1 | grep -q 'zstd'; then command -v mkfs.erofs; return; fi
  root=$dir/root
  if [ ! -x "$dir/mkfs.erofs" ]; then
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$root"
    main=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | awk -v s="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$2 == s { print $1; exit }')
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $main $suite main" >"$dir/sources.list"
    options=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$dir/lists"
      -o "Dir::Cache=$dir/cache" -o Dir::State::status=/dev/null -o APT::Install-Recommends=false -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update >&2
    apt-get "${options[@]}" -y --download-only install erofs-utils libc6 >&2
    for deb in "$dir"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$root"; done
    rm -rf "$dir/cache" "$dir/lists"
    cat >"$dir/mkfs.erofs" <<E2
#!/bin/sh
lib=\$(echo "$root"/usr/lib/*-linux-gnu*)
exec "\$lib"/ld-linux-*.so.* --library-path "\$lib" "$root/usr/bin/mkfs.erofs" "\$@"
E2
    chmod +x "$dir/mkfs.erofs"
  fi
  printf '%s\n' "$dir/mkfs.erofs"
}
