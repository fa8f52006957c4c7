#!/bin/sh
# One screen: is everything right? Exit code 0 only if so.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
if [ "$(docker compose ps --format '{{.State}}' server)" != running ]; then
  docker compose ps --all
fi
require_server
# shellcheck disable=SC2046  # a service a word
docker compose ps --all --format json |
  docker compose exec -T server entrypoint.sh python -m ops.status $(docker compose config --services)
