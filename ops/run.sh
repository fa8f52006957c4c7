#!/bin/sh
# run.sh FLOW/DEPLOYMENT: starts a run and waits for its end; the exit code says how it went.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
exec docker compose run --rm --no-deps --quiet-pull deploy prefect deployment run "$1" --watch
