#!/bin/sh
# [FLOW=flow/deployment] upgrade.sh: after a `git pull`, from the version that runs to the one in this
# folder: build, backup, migrate, start, verify by a run of FLOW. What fails, or Ctrl-C, leads back to
# the images, the Compose files and the database of before.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh
. ops/database.sh

LOG=backups/upgrade.log
BEFORE=.before.yml # the Compose files of the version to go back to
FLOW=${FLOW:-suggest-activity/daily}
doing=    # in the words of "… failed"
switched= # images and containers may be the new ones
migrated= # the database may be
backup=

main() {
  require_server
  trap leave EXIT
  interruptible
  running=$(running_images)
  doing="looking at this machine"
  setup/preflight.sh
  docker compose exec --no-TTY server entrypoint.sh prefect deployment inspect "$FLOW" </dev/null >/dev/null 2>&1 ||
    die "FLOW" "a deployment that the server has, to verify with" "$FLOW" \
      "make upgrade FLOW=flow/deployment"
  doing="building"
  retag running previous
  setup/images.sh
  if [ "$(built_images)" = "$running" ] && same_services; then
    step "Nothing new was built"
    doing="starting"
    # shellcheck disable=SC2119  # all services
    start
    doing="verifying"
    settled
    doing=
    say "Up to date."
    return
  fi
  # Until the workers have stopped, flow runs are of the old version.
  retag local next
  retag previous local

  step "Backup"
  doing="the backup"
  switched=1
  rm -f "$BEFORE"
  [ ! -e .running.yml ] || cp .running.yml "$BEFORE" # which a start replaces
  say "  Stopping the workers first; flow runs that are going have half a minute"
  stop_workers
  backup=$(ops/backup.sh)
  ok "$backup"

  step "Migrating and starting the new version"
  doing="migrating and starting"
  docker compose --progress quiet stop server # the migration is alone with the database
  migrated=1
  retag next local
  # shellcheck disable=SC2119  # all services
  start

  step "Verifying: a run of $FLOW, and the schedules"
  doing="the run of $FLOW"
  FLOW=$FLOW PARAMS='' ops/run.sh
  doing="verifying"
  settled
  doing=
  untag next
  rm -f "$BEFORE"
  step "Upgraded"
  say "The backup of before is $backup; the images of before are tagged \"previous\"."
}

# running_images: what the containers are made of, a line each: name id. What has no container
# (FORK_WORKERS=0) would be made of the image that is there.
running_images() {
  {
    for state in running exited; do
      docker compose ps --all --quiet --status "$state" |
        xargs --no-run-if-empty docker inspect --format '{{.Config.Image}} {{.Image}}'
    done
    for name in $(docker compose config --images); do
      docker image inspect --format "$name {{.Id}}" "$name" 2>/dev/null || true
    done
  } | grep ':local ' | awk '!known[$1]++'
}

# Are the Compose files those that were last started, as far as anybody knows?
same_services() { [ ! -e .running.yml ] || compose_files | cmp -s - .running.yml; }

names() { printf '%s\n' "$running" | sed 's/:local .*//'; }

# built_images: the same images as they were last built.
built_images() {
  for name in $(names); do docker image inspect --format "$name:local {{.Id}}" "$name:local"; done
}

# retag FROM TO: gives each image that has the tag FROM (running: which is in use) the tag TO.
retag() {
  printf '%s\n' "$running" | while read -r name id; do
    name=${name%:local}
    [ "$1" = running ] || id=$name:$1
    docker tag "$id" "$name:$2"
  done
}

untag() { for name in $(names); do docker image rm "$name:$1" >/dev/null 2>&1 || true; done; }

leave() {
  code=$?
  uninterruptible
  if [ -n "$doing" ]; then
    [ "$code" != 0 ] || code=1
    (umask 077 && docker compose logs --no-color --timestamps >"$LOG" 2>&1) || true
    announce "==> $doing failed"
    go_back || {
      problem "the way back" "the old version running" "the error above" \
        "mend it, then: make down; make restore FILE=${backup:-a backup}"
    }
  fi
  exit "$code"
}

# go_back: what the containers said is in the log by now.
go_back() {
  retag running local
  untag next
  if [ -n "$switched" ]; then
    step "Going back to the old version" >&2
    [ ! -e "$BEFORE" ] || export COMPOSE_FILE="$BEFORE"
    stop_workers || return 1
    # All that may be using the database, what an interrupted start left running, too.
    docker compose --progress quiet --profile backup stop deploy server migrate backup || return 1
    if [ -n "$migrated" ]; then restore_database || return 1; fi
    # shellcheck disable=SC2119  # all services
    start && settled || return 1
    [ ! -e "$BEFORE" ] || mv "$BEFORE" .running.yml
  fi
  problem "make upgrade" "every step to work" "$doing failed" "see above and $LOG, mend it, then: make upgrade"
  say "The old version runs, with its data. make up and make deploy would build the new one: to stay" \
    "with the old, go back to its files." >&2
}

restore_database() (
  rm -rf backups/.restore.* # what a power cut left
  work=$(mktemp -d backups/.restore.XXXXXX) || return 1
  trap 'rm -rf "$work"' EXIT
  unpack "$backup" "$work" && start postgres && load "$work" && skip_begun "$(value_in "$work/manifest" created)" && swap ""
)

# skip_begun SINCE: what the new version's workers have begun meanwhile isn't begun again.
skip_begun() {
  begun=$(echo "SELECT DISTINCT flow_run_id FROM flow_run_state WHERE type = 'RUNNING' AND timestamp >= '$1'" |
    sql --dbname=prefect) || return 1
  # This folder's ops/, which the old image needn't have.
  # shellcheck disable=SC2086  # an id a word
  [ -z "$begun" ] || beside --env PREFECT_API_URL=http://127.0.0.1:4200/api \
    --volume "$PWD/ops:/app/ops:ro" server python -m ops.restore skip $begun
}

main
