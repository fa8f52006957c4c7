# What the scripts of setup/ and ops/ share; sourced, never run.
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

# interruptible: a signal, and a terminal or pipe that is gone, end the script by its EXIT trap, which
# dash by itself would skip.
interruptible() { trap 'exit 130' HUP INT PIPE TERM; }

uninterruptible() { trap '' HUP INT PIPE TERM; }

# announce TEXT: on standard error, where all that follows goes, too; that nobody can read it any
# more stops nothing.
announce() {
  printf '\n%s\n' "$1" >&2 || exec 2>/dev/null
  exec >&2
}

# Compose's: its own display on a terminal, elsewhere nothing but errors.
PROGRESS=quiet
[ ! -t 1 ] || PROGRESS=auto

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

# engine_can_come REPORT: where none answers, can one be installed and started here? If not, calls
# REPORT with what stands in the way, in the words of `problem`.
engine_can_come() {
  if [ -n "${DOCKER_HOST:-}" ]; then
    "$1" "Docker engine" "an answer from DOCKER_HOST=$DOCKER_HOST" \
      "$(docker info 2>&1 | tail -n 1)" "start that engine, or: unset DOCKER_HOST"
  elif docker info 2>&1 | grep -qi 'permission denied'; then
    "$1" "Docker engine" "permission to use it" "$(id -un) is not in the docker group" \
      "sudo usermod -aG docker $(id -un), log in again, then: make up"
  elif ! engine_installable; then
    "$1" "Docker engine" "one that answers" "none on $(os_release PRETTY_NAME)" \
      "install and start Docker (engine 25 or newer, Compose 2.24 or newer), then: make up"
  elif ! is_root; then
    "$1" "Docker engine" "one that answers, or root to install it" "none, and you are $(id -un)" \
      "sudo make engine && sudo usermod -aG docker $(id -un), log in again, then: make up"
  else
    return 0
  fi
  return 1
}

# value_in FILE KEY: KEY's value there, without quotes around it; empty where there is none.
value_in() {
  [ ! -r "$1" ] || sed -n "s/^$2=//p" "$1" | tail -n 1 | sed "s/^\([\"']\)\(.*\)\1\$/\2/"
}

env_value() { value_in .env "$1"; }

# setting KEY: as Compose sees it, or will: the environment, else .env, else what .env will be made of.
setting() {
  value=$(printenv "$1" || env_value "$1")
  printf '%s' "${value:-$(value_in .env.example "$1")}"
}

# random LENGTH
random() { LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c "$1"; }

# A Fernet key: 32 bytes in URL-safe base64. 43 random characters and "=" decode to just that, as
# long as the last one has its two lowest bits clear, which "A" has.
encryption_key() { printf '%sA=' "$(random 42)"; }

require_env() {
  [ -e .env ] || die ".env" "a stack that was set up" "no .env here" "make up"
}

# confirm VERB QUESTION: nobody there to ask means no.
confirm() {
  [ "${YES:-}" = 1 ] && return 0
  if [ -t 0 ]; then
    printf '%s [y/N] ' "$2"
    read -r answer || answer=
    case $answer in [Yy]*) return 0 ;; esac
  fi
  die "$1" "a yes" "none" "YES=1 make $1"
}

require_server() {
  require_env
  [ "$(docker compose ps --format '{{.State}}' server)" = running ] ||
    die "server" "running" "not running" "make up"
}

# own_certificate: the folder that TLS_CERTIFICATE names, if that is what it says.
own_certificate() {
  folder=$(setting TLS_CERTIFICATE)
  case $folder in acme | https://*) ;; *) printf '%s' "$folder" ;; esac
}

flows_network() { printf '%s_flows' "$(setting COMPOSE_PROJECT_NAME)"; }

# stop_workers: nothing new begins, and flow runs that are still going are stopped while the server
# is there to hear of it.
stop_workers() {
  docker compose --progress "$PROGRESS" stop worker fork-worker
  runs=$(docker ps --quiet --filter label=io.prefect.flow-run-id --filter "network=$(flows_network)")
  if [ -n "$runs" ]; then
    say "Stopping the flow runs that are still going; they are Crashed, at the latest when the workers are back:"
    # shellcheck disable=SC2086  # an id a word
    docker stop -t 30 $runs
  fi
  ended=$(docker ps --all --quiet --filter label=io.prefect.flow-run-id --filter "network=$(flows_network)")
  # shellcheck disable=SC2086  # an id a word
  [ -z "$ended" ] || docker rm $ended >/dev/null
}

# start [SERVICE]: up, and waits until it is healthy; where it isn't, says why.
start() {
  # A service whose profile was switched off is no orphan to Compose.
  docker compose config --services | grep -qx backup ||
    docker compose --progress quiet --profile backup rm --stop --force backup >/dev/null 2>&1 || true
  # A network keeps the bridge that it was made with, and older Composes keep the network.
  bridges | while read -r network wanted; do
    made=$(docker network inspect --format '{{index .Options "com.docker.network.bridge.name"}}' "$network" 2>/dev/null) || continue
    [ "$made" = "$wanted" ] || exit 1
  done || ops/down.sh || return 1
  # A changed one by itself: together with it, Compose would make anew all that waits for it.
  [ -z "$(docker compose ps --quiet firewall 2>/dev/null)" ] ||
    docker compose --progress quiet up --detach --wait --no-deps firewall >/dev/null 2>&1 || true
  docker compose --progress "$PROGRESS" up --detach --wait --quiet-pull --remove-orphans "$@" || {
    explain
    return 1
  }
  # The one thing of a version that isn't in its images: `make upgrade` may have to go back to it.
  if [ $# = 0 ] && [ -z "${COMPOSE_FILE:-}" ]; then compose_files >.running.yml; fi
}

# bridges: a line a network, its name and its bridge's.
bridges() {
  docker compose config | awk '
    /^[a-z]/ { on = /^networks:/ }
    on && /^    name:/ { network = $2 }
    on && /bridge\.name:/ { print network, $2 }'
}

# compose_files: what makes up the stack, as one file: a YAML document each.
compose_files() {
  cat docker-compose.yml
  if [ -n "$(setting TLS_HOST)" ]; then
    echo ---
    cat proxy/tls.yml
  fi
}

# Compose says which container failed; the reason is in its log.
explain() {
  for service in $(docker compose ps --all --format '{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}' |
    awk '($2 == "exited" && $3 != 0) || $2 == "restarting" || $4 == "unhealthy" {print $1}'); do
    printf '\n==> The last lines of %s\n' "$service" >&2
    docker logs --tail 60 "$(docker compose ps --all --quiet "$service")" >&2
  done
}

# Made here, because Compose would leave it to the engine: as root, for everybody to read.
backups_folder() { (umask 077 && mkdir -p backups); }

# label_images: what the Compose file's labels say. The revision is the commit that last touched what
# the image is made of: any other one would change an image, and so replace its containers, for nothing.
label_images() {
  IMAGE_VERSION=$(pyproject version)
  IMAGE_SOURCE=$(image_source)
  all="pyproject.toml uv.lock setup/venv.sh setup/image"
  # shellcheck disable=SC2086  # a path a word
  {
    SERVER_REVISION=$(revision $all server 'ops/*.py')
    FLOW_REVISION=$(revision $all worker ':!worker/docker_worker.py' fork_pool flows prefect.yaml)
    WORKER_REVISION=$(revision $all worker/Dockerfile worker/docker_worker.py fork_pool)
    UPSTREAM_REVISION=$(revision $all upstream)
    GATE_REVISION=$(revision $all gate)
    FIREWALL_REVISION=$(revision firewall setup/lib.sh)
    PROXY_REVISION=$(revision proxy/Dockerfile proxy/Caddyfile proxy/start.sh)
  }
  export IMAGE_VERSION IMAGE_SOURCE SERVER_REVISION FLOW_REVISION WORKER_REVISION UPSTREAM_REVISION
  export GATE_REVISION FIREWALL_REVISION PROXY_REVISION
}

pyproject() { sed -n "s/^$1 = \"\(.*\)\"\$/\1/p" pyproject.toml | head -n 1; }

# image_source: the project's public address, as pyproject.toml or git has it; else its name.
image_source() {
  address=$(pyproject Source)
  if [ -z "$address" ] && [ "$(revision pyproject.toml)" != unknown ]; then
    address=$(git remote get-url origin 2>/dev/null | sed -nE 's|^(https?://)([^/]*@)?|\1|p')
  fi
  printf '%s' "${address:-$(pyproject name)}"
}

# revision PATH…: the commit that last touched any of them; "-modified" where they differ from it.
revision() {
  commit=$(git log -1 --format=%H -- "$@" 2>/dev/null) || true
  [ -z "$commit" ] || [ -z "$(git status --porcelain -- "$@")" ] || commit=$commit-modified
  printf '%s' "${commit:-unknown}"
}

# build [SERVICE]: on a terminal with Compose's own display; elsewhere only what led to a failure.
# The images that the new ones replaced go.
build() {
  label_images
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
  # The engine does that for one at a time and refuses others: then they go after the next build.
  for _ in 1 2 3 4 5; do
    docker image prune --force >/dev/null 2>&1 \
      --filter "label=com.docker.compose.project=$(setting COMPOSE_PROJECT_NAME)" && break
    sleep 1
  done
}
