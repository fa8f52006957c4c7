#!/bin/sh
# Brings the database to this server's schema; says it plainly where the password doesn't fit, since
# Postgres keeps the password that its volume was created with.
set -eu

if python schema.py 2>/dev/null; then
  echo "The database has this server's schema."
  exit
fi
if output=$(prefect server database upgrade --yes 2>&1); then
  echo "$output"
  exit
fi
echo "$output" >&2
case $output in
  *'password authentication failed'*)
    cat >&2 <<'MESSAGE'

  FAIL  database password
        expected: the password that the database volume was created with
        found:    another POSTGRES_PASSWORD in .env
        fix:      put the old one back into .env, then: make up
                  or give the database the one in .env:
                  docker compose exec postgres psql -U prefect -c "ALTER USER prefect PASSWORD 'the one in .env'"
MESSAGE
    ;;
esac
exit 1
