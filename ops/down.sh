#!/bin/sh
# Takes the stack down and keeps its data. The workers go first.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
stop_workers
docker compose --profile backup down --remove-orphans
