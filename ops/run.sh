#!/bin/sh
# FLOW=flow/deployment [PARAMS='{…}'] run.sh: starts a run and shows its logs until its end; the
# exit code says how it went.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

# Ctrl-C reaches no process in a container but by a signal of its own.
# shellcheck disable=SC2329  # called by the trap
leave() {
  docker compose exec -T server sh -c "for process in \$(grep -ls 'FOLLOWER=$follower' /proc/[0-9]*/environ); do
    process=\${process%/environ}; kill -INT \${process#/proc/}; done" 2>/dev/null || true
  wait
  printf '\nThe run goes on, at the address above.\n' >&2
  exit 130
}

require_server
follower=$$.$(date +%s)
trap leave HUP INT TERM
docker compose exec -T --env "FOLLOWER=$follower" server \
  entrypoint.sh python -m ops.run "$FLOW" "${PARAMS:-}" </dev/null &
code=0
wait $! || code=$?
[ "$code" -lt 128 ] || die "server" "running to the end of the run" "it has stopped" "make status"
exit "$code"
