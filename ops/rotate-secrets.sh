#!/bin/sh
# [FLOW=flow/deployment] rotate-secrets.sh: gives a running stack a new login, database password and
# encryption key, and verifies them by a run of FLOW. What fails, or Ctrl-C, leads back to the old.
#
# .env and the database have to agree. While they may not, the server is stopped and .env.rotating
# holds the other secrets. After a power cut `make up` calls `rotate-secrets.sh finish`, and the
# database follows .env, whichever secrets that has.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh
. ops/database.sh

OTHER=.env.rotating
BEFORE=.env.before-rotation
FLOW=${FLOW:-suggest-activity/daily}
doing= # in the words of "… failed"; until then nothing was touched

main() {
  require_server
  [ ! -e "$OTHER" ] ||
    die "secrets" "no change of them under way" "an interrupted one" "make up, then: make rotate-secrets"
  step "Looking at the stack (nothing is touched yet)"
  settled >/dev/null ||
    die "stack" "one where everything is right, to see that it stays so" "something that isn't" "make status"
  docker compose exec --no-TTY server entrypoint.sh prefect deployment inspect "$FLOW" </dev/null >/dev/null 2>&1 ||
    die "FLOW" "a deployment that the server has, to verify with" "$FLOW" "make rotate-secrets FLOW=flow/deployment"
  reencrypted .env .env >/dev/null
  umask 077
  trap leave EXIT
  interruptible
  cp -p .env "$BEFORE" # with its mode and owner
  cp -p .env "$OTHER.new"
  new_settings >"$OTHER.new"
  sync # whole before it has the name by which it counts
  mv "$OTHER.new" "$OTHER"
  ok "everything is right"

  step "Stopping the workers, then the server (flow runs that are going have half a minute)"
  doing="stopping"
  stop
  step "Changing the secrets, and starting (half a minute)"
  doing="changing the secrets"
  adopt
  doing="starting"
  # shellcheck disable=SC2119  # all services
  start
  step "Verifying: a run of $FLOW, and the schedules"
  doing="the run of $FLOW"
  FLOW=$FLOW PARAMS='' ops/run.sh
  doing="verifying"
  settled
  doing=
  rm -f "$BEFORE"
  step "Rotated"
  say "New are the login's password, the database's, and the encryption key; they are in .env."
  say "Next: log in to the UI again, and tell the login to whoever else uses it." \
    "Backups of before have the old ones in them, and stay good."
}

# new_settings: .env as it will be. (Not on a command line, where everybody could see them.)
new_settings() {
  login=$(env_value PREFECT_API_AUTH_STRING)
  LOGIN=${login%%:*}:$(random 24) PASSWORD=$(random 32) KEY=$(encryption_key) awk '
    /^PREFECT_API_AUTH_STRING=/ { print "PREFECT_API_AUTH_STRING=" ENVIRON["LOGIN"]; next }
    /^POSTGRES_PASSWORD=/ { print "POSTGRES_PASSWORD=" ENVIRON["PASSWORD"]; next }
    /^PREFECT_SERVER_ENCRYPTION_KEY=/ { print "PREFECT_SERVER_ENCRYPTION_KEY=" ENVIRON["KEY"]; next }
    { print }' .env
}

stop() {
  stop_workers
  docker compose --progress quiet stop deploy server migrate
}

# adopt: the secrets in $OTHER become the stack's.
adopt() {
  sync # it has to outlive a power cut before the database knows of it
  follow "$OTHER" .env || return 1
  mv "$OTHER" .env
  setup/env.sh
}

# follow FILE OTHER: the database's secrets become those of FILE, all at once; they may be OTHER's.
follow() {
  updates=$(reencrypted "$1" "$2") || return 1
  # Not into the log either, should it fail.
  sql --dbname=prefect <<SQL
SET log_min_error_statement = panic;
BEGIN;
ALTER ROLE prefect PASSWORD '$(value_in "$1" POSTGRES_PASSWORD)';
$updates
COMMIT;
SQL
}

# reencrypted FILE OTHER: the statements after which Secret blocks are encrypted with FILE's key.
reencrypted() {
  blocks=$(sql --dbname=prefect <<'SQL'
SELECT id || ' ' || (data #>> '{}') FROM block_document WHERE jsonb_typeof(data) = 'string'
SQL
  ) || return 1
  printf '%s\n' "$(value_in "$1" PREFECT_SERVER_ENCRYPTION_KEY)" \
    "$(value_in "$2" PREFECT_SERVER_ENCRYPTION_KEY)" "$blocks" |
    docker run --rm --interactive --network none --read-only --cap-drop ALL --entrypoint python \
      "$(setting COMPOSE_PROJECT_NAME)-server:local" -m ops.reencrypt
}

leave() {
  code=$?
  uninterruptible
  if [ -z "$doing" ]; then
    rm -f "$OTHER" "$OTHER.new" "$BEFORE"
    exit "$code"
  fi
  announce "==> $doing failed: going back to the old secrets"
  if go_back; then
    say "The stack is as it was, with the old secrets. Mend the cause above, then: make rotate-secrets" >&2
  else
    problem "the way back" "the stack running with the old secrets" "the error above" "mend it, then: make up"
  fi
  [ "$code" != 0 ] || code=1
  exit "$code"
}

go_back() {
  stop || return 1
  if [ -e "$OTHER" ]; then
    settle || return 1 # .env has the old ones still
  else
    mv "$BEFORE" "$OTHER" && adopt || return 1
  fi
  # shellcheck disable=SC2119  # all services
  start && settled
}

# settle: whatever the database's secrets are, they become .env's.
settle() {
  if [ -e "$OTHER" ] && ! whole "$OTHER"; then
    say "  note  $OTHER was cut off before the database knew of it, and goes"
  elif [ -e "$OTHER" ]; then
    follow .env "$OTHER" || return 1
  fi
  rm -f "$OTHER" "$OTHER.new" "$BEFORE"
}

# whole FILE: has it a Fernet key?
whole() { value_in "$1" PREFECT_SERVER_ENCRYPTION_KEY | grep -Eqx '[A-Za-z0-9+/_-]{43}='; }

if [ "${1:-}" != finish ]; then
  main
elif [ -e "$OTHER" ] || [ -e "$OTHER.new" ] || [ -e "$BEFORE" ]; then
  step "A change of secrets was interrupted: those of .env are the stack's"
  start postgres
  settle
fi
