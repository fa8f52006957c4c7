# Words and questions shared by the scripts of setup/; sourced, never run.
# shellcheck shell=sh

say() { printf '%s\n' "$*"; }
step() { printf '\n==> %s\n' "$*"; }
ok() { printf '  ok    %s\n' "$*"; }

# problem WHAT EXPECTED FOUND FIX: one failed check, in the form every script here uses.
problem() {
  printf '  FAIL  %s\n        expected: %s\n        found:    %s\n        fix:      %s\n' \
    "$1" "$2" "$3" "$4" >&2
}

die() {
  problem "$@"
  exit 1
}

# confirm QUESTION: asks on a terminal; YES=1, or no terminal, means yes.
confirm() {
  [ "${YES:-}" = 1 ] && return 0
  [ -t 0 ] || return 0
  printf '%s [Y/n] ' "$1"
  read -r answer || return 1
  case $answer in '' | [Yy]*) return 0 ;; *) return 1 ;; esac
}

is_root() { [ "$(id -u)" = 0 ]; }

engine_answers() { docker info >/dev/null 2>&1; }

# os_release KEY: one value of /etc/os-release ("unknown" where there is none, as on macOS).
os_release() {
  if [ -r /etc/os-release ]; then
    # shellcheck source=/dev/null
    (. /etc/os-release && eval "printf '%s' \"\${$1:-unknown}\"")
  else
    printf 'unknown'
  fi
}

# engine_installable: Debian 12 and 13 and Ubuntu carry an engine new enough, or can be given one.
engine_installable() {
  case "$(os_release ID)-$(os_release VERSION_ID)" in
    debian-12 | debian-13 | ubuntu-2[2-9].*) return 0 ;;
    *) return 1 ;;
  esac
}

# env_value KEY: KEY's value in .env, without quotes around it; empty where there is none.
env_value() {
  [ ! -r .env ] || sed -n "s/^$1=//p" .env | tail -n 1 | sed "s/^\([\"']\)\(.*\)\1\$/\2/"
}

# setting KEY DEFAULT: as Compose sees it: the environment, else .env, else DEFAULT.
setting() {
  value=$(printenv "$1" || env_value "$1")
  printf '%s' "${value:-$2}"
}

require_env() {
  [ -e .env ] || die ".env" "a stack that was set up" "no .env here" "make up"
}

require_server() {
  require_env
  [ "$(docker compose ps --format '{{.State}}' server)" = running ] ||
    die "server" "running" "not running" "make up"
}

flows_network() { printf '%s_flows' "$(setting COMPOSE_PROJECT_NAME '')"; }

# confirm_loss QUESTION: like confirm, but nobody there to ask means no.
confirm_loss() {
  [ "${YES:-}" = 1 ] && return 0
  if [ -t 0 ]; then
    printf '%s [y/N] ' "$1"
    read -r answer || answer=
    case $answer in [Yy]*) return 0 ;; esac
  fi
  die "destroy" "a yes" "none" "YES=1 make destroy"
}

# build [SERVICE]: on a terminal with Compose's own display; elsewhere only what led to a failure.
# The images that the new ones replaced go.
build() {
  if [ -t 1 ]; then
    docker compose build "$@" || return 1
  else
    log=$(mktemp)
    docker compose --progress plain build "$@" >"$log" 2>&1 || {
      tail -n 40 "$log" >&2
      rm -f "$log"
      return 1
    }
    rm -f "$log"
  fi
  docker image prune --force \
    --filter "label=com.docker.compose.project=$(setting COMPOSE_PROJECT_NAME '')" >/dev/null
}
