#!/bin/sh
# Brings a Docker engine, with Compose and BuildKit, to a machine where none answers.
# An engine that answers is used as it is. Debian 12/13 and Ubuntu only; packages come from the
# distribution (for Debian 12, whose engine is too old, from Debian 13, pinned below its own).
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

LOG=/var/log/dockerd.log

main() {
  if engine_answers; then
    ok "Docker engine $(docker version --format '{{.Server.Version}}') answers"
    return
  fi
  engine_can_come die
  if ! command -v dockerd >/dev/null 2>&1; then
    confirm "Install Docker from $(os_release PRETTY_NAME)'s packages and start it?" ||
      die "Docker engine" "one that answers" "none, and you said no" "install Docker, then: make up"
    install_engine
  fi
  start_engine
  ok "Docker engine $(docker version --format '{{.Server.Version}}') answers"
}

# confirm QUESTION: asks on a terminal; YES=1, or no terminal, means yes.
confirm() {
  [ "${YES:-}" = 1 ] && return 0
  [ -t 0 ] || return 0
  printf '%s [Y/n] ' "$1"
  read -r answer || return 1
  case $answer in '' | [Yy]*) return 0 ;; *) return 1 ;; esac
}

install_engine() {
  step "Installing Docker from $(os_release PRETTY_NAME)'s packages"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  case "$(os_release ID)-$(os_release VERSION_ID)" in
    debian-12)
      add_trixie_source
      apt_install docker.io/trixie docker-cli/trixie docker-buildx/trixie docker-compose/trixie
      ;;
    debian-*) apt_install docker.io docker-cli docker-buildx docker-compose ;;
    ubuntu-*) apt_install docker.io docker-buildx docker-compose-v2 ;;
  esac
}

apt_install() {
  # iptables: the engine's own networking; it is only recommended by some releases.
  apt-get install -qq -y --no-install-recommends ca-certificates iptables "$@" >/dev/null
}

# Debian 12 has engine 20.10 and Compose 1.29. The machine's own mirror is asked for trixie; the
# pin (100 < 500) keeps everything that is not named above where it was.
add_trixie_source() {
  # shellcheck disable=SC2016  # apt's own language
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' |
    head -n 1)
  printf '%s\n' 'Types: deb' "URIs: ${mirror%/}" 'Suites: trixie' 'Components: main' \
    'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' \
    >/etc/apt/sources.list.d/docker-from-trixie.sources
  printf '%s\n' 'Package: *' 'Pin: release n=trixie' 'Pin-Priority: 100' \
    >/etc/apt/preferences.d/docker-from-trixie
  apt-get update -qq
}

start_engine() {
  step "Starting the Docker engine"
  if [ -d /run/systemd/system ]; then
    systemctl enable --now docker
  elif ! pidof dockerd >/dev/null; then
    # An engine that was killed leaves its pid file, which stops the next one; and a session of its
    # own (setsid) lets it outlive the shell, its standard streams not holding that shell's pipes.
    rm -f /var/run/docker.pid
    setsid -f dockerd >>"$LOG" 2>&1 </dev/null
  fi
  tries=0
  until engine_answers; do
    tries=$((tries + 1))
    [ "$tries" -le 60 ] ||
      die "Docker engine" "an answer within 60 s" "$(tail -n 1 "$LOG" 2>/dev/null || echo silence)" \
        "read $LOG (or: journalctl -u docker), then: make engine"
    sleep 1
  done
}

main
