#!/bin/sh
# The two base images, under their official names: used if present, else pulled, else built from
# Debian's packages. A built one carries the label "stand-in" and keeps the official image's
# contract for what this stack uses; nothing downstream can tell which one it got.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

DEBIAN=debian:trixie-slim
POSTGRES=postgres:17-trixie

main() {
  present_or_pulled "$DEBIAN" || build_debian
  present_or_pulled "$POSTGRES" || build_postgres
}

present_or_pulled() {
  if docker image inspect "$1" >/dev/null 2>&1; then
    ok "$1 is here"
  elif say "  ..    pulling $1" && docker pull --quiet "$1" >/dev/null 2>&1; then
    ok "$1 pulled"
  else
    step "$1 can't be pulled: building it from Debian's packages"
    return 1
  fi
}

build_debian() {
  case "$(os_release ID)" in
    debian | ubuntu) ;;
    *) cannot_build "a Debian or Ubuntu host to build it on" "$(os_release PRETTY_NAME)" ;;
  esac
  is_root || cannot_build "root, to build it" "user $(id -un)"
  command -v mmdebstrap >/dev/null || {
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
      mmdebstrap debian-archive-keyring >/dev/null
  }
  # What the official slim image leaves out, too: man pages, docs (not copyrights), locales, lists.
  # The host's own mirror serves where the host is a Debian, else mmdebstrap's default.
  # Through a file: cut off half-way, a pipe would still be imported.
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  trap 'exit 130' INT TERM
  # shellcheck disable=SC2046,SC2016  # $(mirror) may be nothing at all; "$1" is mmdebstrap's
  mmdebstrap --quiet --variant=minbase --format=tar \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --aptopt='Acquire::Languages "none"' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*' \
    --customize-hook='copy-in setup/docker-clean /etc/apt/apt.conf.d' \
    trixie "$archive" $(mirror)
  docker import --change 'CMD ["bash"]' --change "LABEL stand-in=$DEBIAN" "$archive" "$DEBIAN" \
    >/dev/null
  ok "$DEBIAN built"
}

# mirror: this Debian's own; nothing on Ubuntu.
mirror() {
  [ "$(os_release ID)" = debian ] || return 0
  # shellcheck disable=SC2016  # apt's own language
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
    "Codename: $(os_release VERSION_CODENAME)" | head -n 1
}

build_postgres() {
  docker build --quiet --tag "$POSTGRES" setup/postgres >/dev/null
  ok "$POSTGRES built"
}

cannot_build() {
  die "base image $DEBIAN" "a registry to pull it from, or $1" "$2, and: $(
    docker pull "$DEBIAN" 2>&1 | tail -n 1
  )" "docker pull $DEBIAN (or docker load it from elsewhere), then: make up"
}

main
