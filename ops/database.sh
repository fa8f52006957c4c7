# What restore and upgrade share; sourced, never run. A database is loaded beside the present one
# and takes its place in one step, so that until then nothing has changed.
# shellcheck shell=sh
# Where a function is part of a condition, the shell doesn't stop at an error by itself.

POSTGRES=postgres:17-trixie

# unpack FILE FOLDER: checks a backup and leaves its parts there.
unpack() {
  docker run --rm --interactive --network none --read-only --cap-drop ALL --cap-add CHOWN --cap-add DAC_OVERRIDE \
    ${BACKUP_PASSPHRASE:+--env BACKUP_PASSPHRASE} --volume "$PWD:/project:ro" --volume "$PWD/$2:/work" \
    --entrypoint /project/ops/archive.sh "$POSTGRES" unpack <"$1"
}

# sql [OPTION…]: statements on standard input, by the socket, where Postgres asks for no password.
sql() {
  docker compose exec --no-TTY postgres psql --no-psqlrc --quiet --no-align --tuples-only \
    --set=ON_ERROR_STOP=1 --username=prefect --dbname=postgres "$@"
}

# load FOLDER: its dump into the database prefect_beside; everything has to be in it.
load() {
  drop prefect_beside && echo 'CREATE DATABASE prefect_beside' | sql || return 1
  docker compose exec --no-TTY postgres pg_restore --exit-on-error --no-owner --username=prefect \
    --dbname=prefect_beside <"$1/database.dump" || return 1
  expected="$(value_in "$1/manifest" flow_runs) flow runs, $(value_in "$1/manifest" deployments) deployments"
  found=$(sql --dbname=prefect_beside <<'SQL'
SELECT (SELECT count(*) FROM flow_run) || ' flow runs, ' || (SELECT count(*) FROM deployment) || ' deployments'
SQL
  )
  [ "$found" = "$expected" ] || die "database" "$expected" "$found" "take another backup: ls backups"
}

# swap [PASSWORD]: prefect_beside becomes the database, all at once, and PASSWORD its user's.
swap() {
  drop prefect_before || return 1
  password=${1:+"ALTER ROLE prefect PASSWORD '$1';"}
  sql >/dev/null <<SQL || return 1
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'prefect';
BEGIN;
ALTER DATABASE prefect RENAME TO prefect_before;
ALTER DATABASE prefect_beside RENAME TO prefect;
$password
COMMIT;
SQL
  drop prefect_before
}

drop() { echo "DROP DATABASE IF EXISTS $1 WITH (FORCE)" | sql 2>/dev/null; }

# beside SERVICE COMMAND…: on the database that is not yet the stack's.
beside() {
  docker compose --progress quiet run --rm --no-TTY --no-deps \
    --env PREFECT_SERVER_DATABASE_NAME=prefect_beside "$@" </dev/null
}

# settled: everything is right, at the latest in a minute: workers poll, schedules get their runs.
settled() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
    if screen=$(ops/status.sh 2>&1); then break; fi
    sleep 5
  done
  printf '\n%s\n' "$screen"
  case $screen in *"everything is right"*) ;; *) return 1 ;; esac
}
