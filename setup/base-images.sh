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
  # Through a file: cut off half-way, a pipe would still be imported.
  archive=$(mktemp)
  sources=$(mktemp)
  trap 'rm -f "$archive" "$sources"' EXIT
  interruptible
  sources >"$sources"
  # shellcheck disable=SC2016,SC2046  # "$1" is mmdebstrap's; sources may be nothing at all
  mmdebstrap --quiet --variant=minbase --format=tar \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --aptopt='Acquire::Languages "none"' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*' \
    --customize-hook='copy-in setup/docker-clean /etc/apt/apt.conf.d' \
    trixie "$archive" $([ ! -s "$sources" ] || echo "$sources")
  docker import --change 'CMD ["bash"]' --change "LABEL stand-in=$DEBIAN" "$archive" "$DEBIAN" \
    >/dev/null
  ok "$DEBIAN built"
}

# sources: trixie's suites, security's included, where this Debian has its own; on Ubuntu nothing,
# and mmdebstrap takes Debian's default.
sources() {
  [ "$(os_release ID)" = debian ] || return 0
  for suite in "" -updates -security; do
    # shellcheck disable=SC2016  # apt's own language
    uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
      "Codename: $(os_release VERSION_CODENAME)$suite" | head -n 1)
    [ -z "$uri" ] || echo "deb $uri trixie$suite main"
  done
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
