#!/bin/sh
# Takes the stack down and keeps its data. The workers go first.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
step "Stopping the workers, then the rest (flow runs that are going have half a minute)"
stop_workers
docker compose --progress "$PROGRESS" --profile backup down --remove-orphans
