#!/bin/bash
# What touches a backup's parts, in a container of the Postgres image with the project at /project:
#   archive.sh once    writes a backup to /backups and prints its name
#   archive.sh daily   writes one a day at BACKUP_AT and keeps the newest BACKUP_KEEP of these
#   archive.sh unpack  reads a backup on standard input, checks it, leaves its parts in /work
# The passphrase comes from the environment or .env: on a command line everybody could see it.
set -euo pipefail
cd /project
. setup/lib.sh

FORMAT=1
PARTS=(manifest env prefect.yaml database.dump data.tar)
child=

main() {
  umask 077
  trap leave HUP INT TERM
  export BACKUP_PASSPHRASE=${BACKUP_PASSPHRASE:-$(env_value BACKUP_PASSPHRASE)}
  case $1 in
    once) patiently write_backup "${2:-}" ;;
    daily) daily ;;
    unpack) patiently unpack ;;
  esac
}

# patiently COMMAND…: as a job of its own, because a signal interrupts nothing but a `wait`.
patiently() {
  set -m
  "$@" </dev/stdin &
  child=$!
  set +m
  wait "$child"
}

# Compose and `docker stop` each send a signal. The second one, too, ends a `wait`; but the child has
# to get through with its cleaning up, because what is left running in a container is killed.
leave() {
  uninterruptible
  if [ -n "$child" ]; then
    kill -- "-$child" 2>/dev/null || true
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  fi
  exit 130
}

# write_backup SUFFIX
write_backup() {
  exec 9</backups
  flock --nonblock 9 || die "backup" "no other one going on" "one" "wait for its end, then: make backup"
  rm -rf /backups/.making.* # what a power cut left
  work=/backups/.making.$BASHPID
  trap 'uninterruptible; rm -rf "$work"' EXIT # before there is anything to remove
  mkdir "$work"
  chown --reference=/backups "$work"

  cp .env "$work/env"
  cp prefect.yaml "$work"
  {
    echo "format=$FORMAT"
    echo "created=$(date --utc +%FT%TZ)"
    echo "project=$PROJECT"
    echo "prefect=$(prefect_version)"
    echo "postgres=$PG_MAJOR"
    dump_database
  } >"$work/manifest"
  pg_restore --list "$work/database.dump" >/dev/null
  # The database's secrets are those of .env, but while `make rotate-secrets` changes both.
  if [ -e .env.rotating ] || ! cmp --quiet .env "$work/env"; then
    die "backup" ".env to stay as it is meanwhile" "a change of it" "make up, then: make backup"
  fi
  # After the database: what that refers to was written before. 1: a file changed meanwhile.
  tar --create --file="$work/data.tar" --directory=/data --exclude=./.beside \
    --warning=no-file-changed --warning=no-file-removed . || [ $? = 1 ]
  (cd "$work" && sha256sum "${PARTS[@]}" >SHA256SUMS)

  name=$PROJECT-$(date --utc +%Y%m%dT%H%M%SZ)$1.tar
  if [ -n "$BACKUP_PASSPHRASE" ]; then
    name=$name.enc
    pack | cipher >"$work/whole"
  else
    pack >"$work/whole"
  fi
  chown --reference=/backups "$work/whole"
  sync "$work/whole"
  mv "$work/whole" "/backups/$name"
  sync /backups
  echo "$name"
}

pack() {
  tar --create --directory="$work" --owner=0 --group=0 "${PARTS[@]}" SHA256SUMS
}

# cipher [-d]: the key is made from the passphrase slowly, so that guessing is expensive.
cipher() {
  openssl enc -aes-256-cbc -pbkdf2 -iter 600000 -pass env:BACKUP_PASSPHRASE "$@"
}

# dump_database: makes the dump and prints what there is in it, both as of one moment.
dump_database() {
  PGPASSWORD=$(env_value POSTGRES_PASSWORD)
  export PGPASSWORD PGHOST=postgres PGUSER=prefect PGDATABASE=prefect work
  psql --no-psqlrc --no-align --tuples-only --quiet --set=ON_ERROR_STOP=1 <<'SQL'
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT pg_export_snapshot() AS snapshot \gset
\setenv snapshot :snapshot
\! pg_dump --format=custom --snapshot="$snapshot" --file="$work/database.dump" </dev/null
\if :SHELL_ERROR
  DO $$ BEGIN RAISE 'the database could not be dumped'; END $$;
\endif
SELECT 'revision=' || version_num FROM alembic_version;
SELECT 'flow_runs=' || count(*) FROM flow_run;
SELECT 'deployments=' || count(*) FROM deployment;
SQL
}

# What the running server says: the project's files may be of a newer one that isn't up yet.
prefect_version() {
  {
    exec 3<>/dev/tcp/server/4200
    printf 'GET /api/admin/version HTTP/1.0\r\nHost: server\r\nAuthorization: Basic %s\r\n\r\n' \
      "$(env_value PREFECT_API_AUTH_STRING | tr -d '\n' | base64 --wrap=0)" >&3
    timeout 10 cat <&3 | sed -n 's/^"\([0-9][0-9a-z.+]*\)"$/\1/p' | grep .
  } 2>/dev/null || echo unknown
}

# A day gets its backup at BACKUP_AT, or as soon after that as the stack runs.
daily() {
  echo "A backup a day at $BACKUP_AT ($TZ); the newest $BACKUP_KEEP are kept"
  done_on=
  while true; do
    today=$(date +%F)
    if [ "$done_on" != "$today" ] && [[ ! $(date +%H:%M) < $BACKUP_AT ]]; then
      # By itself, because `if` would let it go on after an error.
      if made_since "$today" || patiently "$0" once -daily; then
        done_on=$today
        rm -f /tmp/failed
        ours | sort | head --lines="-$BACKUP_KEEP" | xargs --no-run-if-empty rm -f
      else
        touch /tmp/failed # the health check's, for `make status`
        echo "No backup; the next try is in ten minutes" >&2
        patiently sleep 570
      fi
    fi
    patiently sleep 30
  done
}

# ours: the daily backups of this project.
ours() {
  find /backups -maxdepth 1 -name "$PROJECT-????????T??????Z-daily.tar*"
}

# made_since DAY: by its name, which a copy keeps. (There are zones where a day has no midnight.)
made_since() {
  midnight=$(date --date="$1 00:00" +%s 2>/dev/null || date --date="$1 01:00" +%s)
  newest=$(ours | sort | tail --lines=1)
  newest=${newest##*/"$PROJECT"-}
  [[ ! $newest < $(date --utc --date="@$midnight" +%Y%m%dT%H%M%SZ) ]]
}

unpack() {
  start=$(head --bytes=8 | tr -d '\0')
  if [ "$start" = Salted__ ]; then
    [ -n "$BACKUP_PASSPHRASE" ] || die "BACKUP_PASSPHRASE" "the one that the backup was made with" \
      "none, neither in the environment nor in .env" "BACKUP_PASSPHRASE=… make restore FILE=…"
    whole | cipher -d 2>/dev/null | extract ||
      die "backup" "a whole file, and the passphrase that it was made with" \
        "another passphrase, or a damaged file" \
        "BACKUP_PASSPHRASE=… make restore FILE=…; or take another backup: ls backups"
  else
    whole | extract || {
      [ ! -e /work/manifest ] || wrong "a truncated or damaged one"
      wrong "something else"
    }
  fi
  format=$(value_in /work/manifest format)
  [ -n "$format" ] || wrong "something else"
  [ "$format" -le "$FORMAT" ] || newer "format $FORMAT" "format $format"
  for part in "${PARTS[@]}"; do grep --quiet "  $part\$" /work/SHA256SUMS || wrong "one without $part"; done
  (cd /work && sha256sum --check --quiet SHA256SUMS >/dev/null 2>&1) || wrong "a damaged one"
  [ "$(value_in /work/manifest postgres)" -le "$PG_MAJOR" ] ||
    newer "PostgreSQL $PG_MAJOR" "PostgreSQL $(value_in /work/manifest postgres)"
  chown --recursive --reference=/work /work
}

whole() {
  printf '%s' "$start"
  cat
}

extract() { tar --extract --directory=/work --no-same-owner --no-same-permissions 2>/dev/null; }

# wrong FOUND
wrong() {
  die "backup" "a file that make backup wrote, whole" "$1" "take another backup: ls backups"
}

# newer EXPECTED FOUND
newer() {
  die "backup" "one of $1 or older" "$2" "take the version of this project that made it, then: make restore FILE=…"
}

main "$@"
