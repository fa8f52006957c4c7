#!/bin/sh
# Removes everything of the stack: containers, networks, the database, images. Asks first.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

# confirm_loss QUESTION: nobody there to ask means no.
confirm_loss() {
  [ "${YES:-}" = 1 ] && return 0
  if [ -t 0 ]; then
    printf '%s [y/N] ' "$1"
    read -r answer || answer=
    case $answer in [Yy]*) return 0 ;; esac
  fi
  die "destroy" "a yes" "none" "YES=1 make destroy"
}

require_env
project=$(setting COMPOSE_PROJECT_NAME)
confirm_loss "Remove the stack \"$project\" with its data: every run, log, artifact and file?"
ops/down.sh
docker compose down --volumes --remove-orphans
images=$(docker image ls --quiet --filter "label=com.docker.compose.project=$project" | sort -u)
# shellcheck disable=SC2086  # an id a word
[ -z "$images" ] || docker image rm --force $images >/dev/null
rm -rf .secrets
say "Nothing of \"$project\" is left but .env, your settings, and the base images that others may use."
