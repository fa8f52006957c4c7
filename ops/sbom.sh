#!/bin/sh
# Writes sbom/NAME.cdx.json for every image of the stack: what is in it, in CycloneDX.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
# shellcheck disable=SC2046  # an image a word
set -- $(docker compose --profile '*' config --images | sort -u)
for image in "$@"; do
  docker image inspect "$image" >/dev/null 2>&1 || die "image" "$image" "no such image" "make images, then: make sbom"
done
mkdir -p sbom
.venv/bin/python -m ops.sbom "$(setting COMPOSE_PROJECT_NAME)" "$@"
