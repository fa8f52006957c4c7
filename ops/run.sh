#!/bin/sh
# FLOW=flow/deployment run.sh: starts a run and waits for its end; the exit code says how it went.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_server
case $FLOW in
  ?*/?*) ;;
  *) die "FLOW" "flow/deployment, such as suggest-activity/daily" "${FLOW:-nothing}" "make run FLOW=suggest-activity/daily" ;;
esac
exec docker compose run --rm --no-deps --quiet-pull deploy prefect deployment run "$FLOW" --watch
