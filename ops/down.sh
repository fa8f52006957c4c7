#!/bin/sh
# Takes the stack down and keeps its data. The workers go first, so that nothing new begins; flow
# runs that are still going are stopped while the server is there to hear of it.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
docker compose stop worker fork-worker
runs=$(docker ps --quiet --filter label=io.prefect.flow-run-id --filter "network=$(flows_network)")
if [ -n "$runs" ]; then
  say "Stopping the flow runs that are still going; they are Crashed, at the latest after the next make up:"
  # shellcheck disable=SC2086  # an id a word
  docker stop -t 30 $runs
fi
ended=$(docker ps --all --quiet --filter label=io.prefect.flow-run-id --filter "network=$(flows_network)")
# shellcheck disable=SC2086  # an id a word
[ -z "$ended" ] || docker rm $ended >/dev/null
docker compose down --remove-orphans
