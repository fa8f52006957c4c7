#!/bin/sh
# Writes a backup of the running stack to backups/; its path is the last line. See ops/archive.sh.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

require_env
[ "$(docker compose ps --format '{{.State}}' postgres)" = running ] ||
  die "stack" "running" "its database is not" "make up, then: make backup"
backups_folder
# In the same container and by the same script as the daily ones.
container=$(setting COMPOSE_PROJECT_NAME)-backup-$$
# Compose, itself interrupted, doesn't always pass that on.
leave() {
  uninterruptible
  docker stop "$container" >/dev/null 2>&1 || true
  docker rm --force "$container" >/dev/null 2>&1 || true
  say "Interrupted; no backup was written." >&2
  exit 130
}
trap leave HUP INT TERM
name=$(docker compose --progress quiet run --rm --no-TTY --no-deps --name "$container" \
  ${BACKUP_PASSPHRASE:+--env BACKUP_PASSPHRASE} backup once </dev/null)
[ "${name%.enc}" != "$name" ] ||
  say "Not encrypted, and it holds the stack's secrets: keep it private, or set BACKUP_PASSPHRASE in .env." >&2
say "backups/$name"
