#!/bin/sh
# Takes the stack down and keeps its data. The workers go first.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
step "Stopping the workers, then the rest (flow runs that are going have half a minute)"
stop_workers
docker compose --progress quiet start firewall >/dev/null 2>&1 || true # killed, it would leave its rules
docker compose --progress "$PROGRESS" --profile backup down --remove-orphans
