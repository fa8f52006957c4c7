#!/usr/bin/env bash
# First start: make the cluster, its user and its database, run /docker-entrypoint-initdb.d; then,
# and at every later start, become the server. Variables as in the official image: POSTGRES_PASSWORD,
# _USER, _DB, _INITDB_ARGS (each also as NAME_FILE) and POSTGRES_HOST_AUTH_METHOD.
set -Eeuo pipefail

# from_file NAME: takes NAME's value from the file in NAME_FILE; both set is an error.
from_file() {
  local name=$1 file_name=${1}_FILE
  if [[ -n ${!file_name:-} ]]; then
    [[ -z ${!name:-} ]] || fail "both $name and $file_name are set: set one of them"
    export "$name=$(<"${!file_name}")"
    unset "$file_name"
  fi
}

fail() {
  echo "postgres: $*" >&2
  exit 1
}

initialise() {
  # Half a cluster would be taken for a whole one at the next start.
  trap 'rm -rf "${PGDATA:?}"/*; exit 1' ERR INT TERM
  if [[ -z ${POSTGRES_PASSWORD:-} && ${POSTGRES_HOST_AUTH_METHOD:-} != trust ]]; then
    fail "no password for the superuser: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE"
  fi
  # shellcheck disable=SC2086  # several arguments in one variable, as the official image has it
  initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:-}") \
    ${POSTGRES_INITDB_ARGS:-}
  printf '\nhost all all all %s\n' "${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >>"$PGDATA/pg_hba.conf"

  # Reachable by its socket alone until everything is in place: a health check over TCP can't pass
  # before the database exists.
  PGUSER=$POSTGRES_USER pg_ctl start --wait -o "-c listen_addresses=''"
  if [[ $POSTGRES_DB != postgres ]]; then
    sql --dbname postgres --set db="$POSTGRES_DB" <<<'CREATE DATABASE :"db";'
  fi
  run_init_files
  pg_ctl stop --wait --mode fast
  trap - ERR INT TERM
}

sql() {
  psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" "$@"
}

run_init_files() {
  local file
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sql) sql --dbname "$POSTGRES_DB" --file "$file" ;;
      *.sql.gz) gunzip -c "$file" | sql --dbname "$POSTGRES_DB" ;;
      *.sh)
        if [[ -x $file ]]; then "$file"; else
          # shellcheck source=/dev/null
          . "$file"
        fi
        ;;
    esac
  done
}

_main() {
  # "postgres -c x=y" may be given as "-c x=y".
  if [[ ${1:-} == -* ]]; then set -- postgres "$@"; fi
  if [[ ${1:-} == postgres ]]; then
    mkdir -p "$PGDATA"
    chmod 700 "$PGDATA" || true
    if [[ $(id -u) == 0 ]]; then
      chown -R postgres:postgres "$PGDATA" /var/run/postgresql
      exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
    fi
    from_file POSTGRES_PASSWORD
    from_file POSTGRES_USER
    from_file POSTGRES_DB
    from_file POSTGRES_INITDB_ARGS
    export POSTGRES_USER=${POSTGRES_USER:-postgres}
    export POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER}
    if [[ ! -s $PGDATA/PG_VERSION ]]; then
      initialise
    fi
    unset POSTGRES_PASSWORD
  fi
  exec "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  _main "$@"
fi
