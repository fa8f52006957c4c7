#!/bin/sh
# Builds the flow image anew and applies prefect.yaml and the base job template.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_server
build deploy || die "flow image" "a build that ends" "the error above" "mend it, then: make deploy"
# The service's own container, not a `run` beside it: `make status` tells how the last deploy went.
docker compose up --detach --no-deps --force-recreate --quiet-pull deploy 2>/dev/null ||
  die "server" "running" "no answer from it" "make up"
container=$(docker compose ps --all --quiet deploy)
docker logs --follow "$container"
exit "$(docker inspect --format '{{.State.ExitCode}}' "$container")"
