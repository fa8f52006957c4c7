#!/bin/sh
# Removes everything of the stack: containers, networks, the database, images. Asks first.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
project=$(setting COMPOSE_PROJECT_NAME)
confirm destroy "Remove the stack \"$project\" with its data: every run, log, artifact and file?"
ops/down.sh
docker compose --progress "$PROGRESS" --profile backup down --volumes --remove-orphans
# What a setting that was switched off has left is nothing that Compose knows of.
for kind in volume network; do
  docker $kind ls --quiet --filter "label=com.docker.compose.project=$project" | while read -r left; do
    docker $kind rm "$left" >/dev/null
  done
done
images=$(docker image ls --quiet --filter "label=com.docker.compose.project=$project" | sort -u)
# shellcheck disable=SC2086  # an id a word
[ -z "$images" ] || docker image rm --force $images >/dev/null
rm -rf .secrets .running.yml .before.yml .env.rotating .env.rotating.new .env.before-rotation
say "Nothing of \"$project\" is left but .env and its like, your settings, backups/, and the base images that others may use."
