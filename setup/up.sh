#!/bin/sh
# From whatever this machine is to a stack that runs, its flows deployed, one run done. Every step
# looks first and does only what is missing, so it can be interrupted and started again at any time.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

main() {
  trap 'printf "\nInterrupted. Nothing is lost; go on with: make up\n" >&2; exit 130' HUP INT TERM
  setup/preflight.sh
  # ── Nothing was touched above this line ──
  setup/engine.sh
  setup/images.sh
  ops/rotate-secrets.sh finish # one that was interrupted
  step "Starting the stack (half a minute)"
  # shellcheck disable=SC2119  # all services
  start || {
    # One bad deployment doesn't keep the others, nor anybody, from the stack.
    if works; then tell || true; fi
    printf '\nThe stack is not complete. Mend the cause above, then: make up\n' >&2
    exit 1
  }
  tell
}

tell() {
  docker compose exec -T server entrypoint.sh python -m ops.first_run
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

main
