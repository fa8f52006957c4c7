#!/bin/sh
# FILE=backups/… [YES=1] [REPLAY=1] restore.sh: brings a stopped stack, or a machine that has
# nothing yet, to a backup. Everything is prepared beside what there is, which stays as it was until
# all of it has worked.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh
. ops/database.sh

# Of this machine; every other setting comes from the backup, with the data that it belongs to.
ADDRESS="COMPOSE_PROJECT_NAME PREFECT_PORT UPSTREAM_PORT TLS_HOST TLS_PORT TLS_CERTIFICATE"
MACHINE="$ADDRESS COMPOSE_FILE HOST_PORTS DOCKER_SOCKET DOCKER_GID CA_BUNDLE"

FILE=${FILE:-}
AGAIN="make restore FILE=$FILE"
work=
new_env=    # .env was not there
new_secrets= # nor .secrets
touched=    # containers and volumes may be there that were not
volumes=    # those that were
unfinished= # the swap has begun

main() {
  [ -n "$FILE" ] || die "FILE" "a backup" "nothing" "make restore FILE=$(newest)"
  [ -f "$FILE" ] && [ -r "$FILE" ] || die "FILE" "a file that can be read" "$FILE" "make restore FILE=$(newest)"
  umask 077
  [ ! -e .env ] || refuse_running
  trap leave EXIT
  interruptible

  step "Looking at $FILE"
  backups_folder
  setup/base-images.sh
  rm -rf backups/.restore.* # what a power cut left
  work=$(mktemp -d backups/.restore.XXXXXX)
  unpack "$FILE" "$work"
  created=$(value_in "$work/manifest" created)
  ok "of $created: $(value_in "$work/manifest" flow_runs) flow runs, $(value_in "$work/manifest" deployments) deployments"

  [ -e .env ] || first_env
  refuse_running
  new_settings >"$work/env.new"
  setup/preflight.sh
  setup/images.sh
  check_version
  project=$(setting COMPOSE_PROJECT_NAME)
  volumes=$(list_volumes)
  differing=
  [ -n "$new_env" ] || differing=$(grep -Fvx -f .env "$work/env.new" | sed -n 's/^\([A-Z_a-z0-9]*\)=.*/ \1/p' | tr -d '\n')
  [ -z "$differing" ] || say "  note  other in the backup than here, and about to be the backup's:$differing"
  [ -z "$volumes" ] ||
    confirm "restore FILE=$FILE" "Replace every run, setting and file of \"$project\" by the backup of $created?"

  step "Restoring beside what there is (nothing of that is touched yet)"
  touched=1
  start postgres
  load "$work"
  # Postgres keeps the password that its volume was made with; .env may have been made anew since.
  printf "ALTER ROLE prefect PASSWORD '%s'\n" "$(env_value POSTGRES_PASSWORD)" | sql
  beside migrate >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    die "database" "a schema that this version knows, or can migrate" "the error above" \
      "take the version of this project that made the backup ($(value_in "$work/manifest" prefect))"
  }
  ok "database"
  # Into a folder beside, and by the image that owns the volume.
  docker compose --progress quiet run --rm --no-TTY --no-deps deploy \
    sh -c 'rm -rf /data/.beside && mkdir /data/.beside && tar -x -C /data/.beside -f -' <"$work/data.tar"
  ok "files"
  # No worker is there yet, and no service of the server's that would call runs late or schedule new.
  beside --env PREFECT_API_URL=http://127.0.0.1:4200/api server \
    python -m ops.restore settle "$created" "${REPLAY:-}"

  step "Taking the old one's place"
  uninterruptible # from here on it is quicker to end than to go back
  touched=""
  unfinished=1
  swap "$(value_in "$work/env.new" POSTGRES_PASSWORD)"
  [ -n "$new_env" ] || cp .env .env.before-restore
  new_env=
  new_secrets=
  mv "$work/env.new" .env
  setup/env.sh
  # Of slots that runs of the replaced database hold: all are free in this one.
  docker compose --progress quiet run --rm --no-TTY --no-deps server \
    rm -rf /var/lib/prefect/concurrency_leases </dev/null
  docker compose --progress quiet run --rm --no-TTY --no-deps deploy sh -c '
    cd /data && find . -mindepth 1 -maxdepth 1 ! -name .beside -exec rm -rf {} + &&
    find .beside -mindepth 1 -maxdepth 1 -exec mv {} . \; && rmdir .beside' </dev/null
  unfinished=
  ok "database, settings and files are the backup's"
  cmp -s "$work/prefect.yaml" prefect.yaml || {
    cp "$work/prefect.yaml" prefect.yaml.from-backup
    say "  note  prefect.yaml here is not the backup's, which is now prefect.yaml.from-backup"
  }
  interruptible

  step "Starting the stack (half a minute)"
  # shellcheck disable=SC2119  # all services
  { start && settled; } || {
    printf '\nThe backup is restored, but not everything is right. Mend the cause above, then: make up\n' >&2
    exit 1
  }
  docker compose exec --no-TTY server entrypoint.sh python -m ops.restore tell
}

# newest: what to type after FILE=.
newest() {
  found=$(find backups -maxdepth 1 -name '*.tar*' 2>/dev/null | sort | tail -n 1)
  printf '%s' "${found:-backups/…}"
}

list_volumes() {
  docker volume ls --quiet --filter "label=com.docker.compose.project=$(setting COMPOSE_PROJECT_NAME)"
}

refuse_running() {
  running=$(docker ps --quiet --filter "label=com.docker.compose.project=$(setting COMPOSE_PROJECT_NAME)")
  [ -z "$running" ] || die "stack \"$(setting COMPOSE_PROJECT_NAME)\"" "stopped" "running" "make down, then: $AGAIN"
}

# A machine without .env gets one with the backup's name, ports and TLS, unless the environment says
# otherwise, and with what setup/env.sh finds here.
first_env() {
  for key in $ADDRESS; do
    value=$(printenv "$key" || value_in "$work/env" "$key")
    [ -z "$value" ] || export "$key=$value"
  done
  refuse_running
  [ -e .secrets ] || new_secrets=1
  new_env=1
  setup/env.sh
}

# new_settings: .env as it will be.
new_settings() {
  awk -v machine=" $MACHINE " '
    { key = ""; if (match($0, /^[A-Za-z_][A-Za-z_0-9]*=/)) key = substr($0, 1, RLENGTH - 1) }
    key != "" && index(machine, " " key " ") { if (FNR < NR) print; next }
    FNR == NR { if (key != "") { line[key] = $0; if (!(key in told)) order[++count] = key; told[key] } next }
    key in line { if (!(key in done)) print line[key]; done[key]; next }
    { print }
    END { for (i = 1; i <= count; i++) if (!(order[i] in done)) print line[order[i]] }
  ' "$work/env" .env
}

check_version() {
  theirs=$(value_in "$work/manifest" prefect)
  mine=$(docker run --rm --network none --entrypoint python "$(setting COMPOSE_PROJECT_NAME)-server:local" \
    -c 'from importlib.metadata import version; print(version("prefect"))')
  [ "$theirs" = unknown ] || [ "$(printf '%s\n' "$theirs" "$mine" | sort -V | tail -n 1)" = "$mine" ] ||
    die "backup" "one of Prefect $mine or older" "Prefect $theirs" \
      "take the version of this project that made it, then: $AGAIN"
}

# Leaves what was there, and nothing else.
leave() {
  code=$?
  uninterruptible
  if [ -n "$touched" ]; then
    announce "Nothing was restored; what there was is as it was."
    drop prefect_beside || true
    docker compose --progress quiet run --rm --no-TTY --no-deps deploy rm -rf /data/.beside </dev/null || true
    docker compose --progress quiet --profile backup down --remove-orphans >/dev/null 2>&1 || true
    list_volumes | while read -r volume; do
      printf '%s\n' "$volumes" | grep -Fqx "$volume" || docker volume rm "$volume" >/dev/null
    done
  fi
  [ -z "$unfinished" ] || announce "Half-way through; once the cause above is mended: $AGAIN"
  [ -z "$new_env" ] || rm -f .env
  [ -z "$new_secrets" ] || rm -rf .secrets
  [ -z "$work" ] || rm -rf "$work"
  exit "$code"
}

main
