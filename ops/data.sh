#!/bin/sh
# [TO=folder] data.sh: lists the files that flows have written; with TO, copies them there.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
project=$(setting COMPOSE_PROJECT_NAME)
volume=${project}_data
docker volume inspect "$volume" >/dev/null 2>&1 ||
  die "data volume" "a stack that was set up" "no volume $volume" "make up"
docker image inspect "$project-flow:local" >/dev/null 2>&1 ||
  die "flow image" "$project-flow:local" "no such image" "make images"

# in_volume COMMAND…: with the volume and nothing else, whether or not the stack is up. What begins
# with a dot is Prefect's (results that are kept) or not finished.
in_volume() {
  docker run --rm --network none --read-only --cap-drop ALL --volume "$volume:/data:ro" \
    --workdir /data --entrypoint "" "$project-flow:local" "$@"
}

if [ -z "${TO:-}" ]; then
  files=$(in_volume find . -name '.?*' -prune -o -type f -printf '%TY-%Tm-%Td %TH:%TM %10s  %P\n')
  if [ -n "$files" ]; then
    printf '%s\n' "$files" | sort
    say "Copy them out: make data TO=folder"
  else
    say "No files yet: users-etl/hourly writes the first at the full hour, or: make run FLOW=users-etl/hourly"
  fi
else
  case $TO in -*) TO=./$TO ;; esac
  if ! { mkdir -p "$TO" && [ -w "$TO" ]; } 2>/dev/null; then
    die "TO" "a folder that you can write to, or make" "$TO" "make data TO=folder"
  fi
  # sh knows only of the last command of a pipe how it ended.
  failed=$(mktemp)
  trap 'rm -f "$failed"' EXIT
  interruptible
  { in_volume tar --create --no-wildcards-match-slash --exclude='.?*' . || echo failed >"$failed"; } |
    tar -x --no-same-owner -f - -C "$TO"
  [ ! -s "$failed" ] || die "data" "every file to be read" "the error above" "make data TO=$TO"
  say "Copied to $(cd "$TO" && pwd)"
fi
