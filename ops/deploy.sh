#!/bin/sh
# Builds the flow image anew and applies prefect.yaml and the base job template.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_server
setup/env.sh # what `deploy` reads of .env may have changed
docker compose --progress quiet up --detach --wait --no-deps gate # and FLOW_IMAGES
build deploy || die "flow image" "a build that ends" "the error above" "mend it, then: make deploy"
# The service's own container, not a `run` beside it: `make status` tells how the last deploy went.
docker compose --progress quiet up --detach deploy
container=$(docker compose ps --all --quiet deploy)
docker logs --follow --since "$(docker inspect --format '{{.State.StartedAt}}' "$container")" "$container"
# Its runs see the new code; those that are going have half a minute to end.
# (Not `up`, which would deploy once more; with --no-deps, the next `make up` would make it anew.)
docker compose --progress quiet create fork-worker
docker compose ps --all --quiet fork-worker | xargs docker start >/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  docker compose ps --format '{{.Health}}' fork-worker | grep --quiet starting || break
  sleep 1
done
exit "$(docker inspect --format '{{.State.ExitCode}}' "$container")"
