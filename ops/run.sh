#!/bin/sh
# FLOW=flow/deployment [PARAMS='{…}'] run.sh: starts a run and shows its logs until its end; the
# exit code says how it went.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_server
# With a terminal, Ctrl-C reaches the process in the container; the run itself goes on.
tty=-T
[ ! -t 0 ] || [ ! -t 1 ] || tty=
# shellcheck disable=SC2086  # an option or none
exec docker compose exec $tty server entrypoint.sh python -m ops.run "$FLOW" "${PARAMS:-}"
