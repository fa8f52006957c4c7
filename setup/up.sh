#!/bin/sh
# From whatever this machine is to a stack that runs, its flows deployed, one run done. Every step
# looks first and does only what is missing, so it can be interrupted and started again at any time.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

main() {
  trap 'printf "\nInterrupted. Nothing is lost; go on with: make up\n" >&2; exit 130' INT TERM
  setup/preflight.sh
  # ── Nothing was touched above this line ──
  setup/engine.sh
  setup/images.sh
  start
  tell
}

tell() {
  docker compose exec -T server entrypoint.sh python -m ops.first_run
}

start() {
  step "Starting the stack (half a minute)"
  progress=quiet
  [ ! -t 1 ] || progress=auto
  docker compose --progress "$progress" up --detach --wait --quiet-pull --remove-orphans || {
    explain
    # One bad deployment doesn't keep the others, nor anybody, from the stack.
    if works; then tell || true; fi
    printf '\nThe stack is not complete. Mend the cause above, then: make up\n' >&2
    exit 1
  }
}

# Does the worker take runs, or will it within half a minute?
works() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    case $(docker compose ps --format '{{.Health}}' worker) in
      healthy) return 0 ;;
      starting) sleep 2 ;;
      *) return 1 ;;
    esac
  done
  return 1
}

# Compose says which container failed; the reason is in its log.
explain() {
  for service in $(docker compose ps --all --format '{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}' |
    awk '($2 == "exited" && $3 != 0) || $2 == "restarting" || $4 == "unhealthy" {print $1}'); do
    printf '\n==> The last lines of %s\n' "$service" >&2
    docker logs --tail 60 "$(docker compose ps --all --quiet "$service")" >&2
  done
}

main
