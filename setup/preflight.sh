#!/bin/sh
# Looks whether this machine can carry the stack, touches nothing, and reports everything that
# stands in the way at once. `preflight.sh disk` looks at the disk alone.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

MEMORY_MIB=2048
DISK_MIB=4096
COMPOSE=2.24
ENGINE=25
PORT='([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])'
TLS="TLS_HOST TLS_PORT TLS_CERTIFICATE"
URLS="ACTIVITY_API_URL USERS_API_URL FACT_API_URL GITHUB_API_URL ALERT_WEBHOOK_URL"

failures=0

main() {
  if [ "${1:-}" = disk ]; then
    check_disk "$(docker info --format '{{.DockerRootDir}}')"
    return "$failures"
  fi
  step "Looking at this machine (nothing is touched yet)"
  check_env
  if engine_answers; then
    check_version "Docker engine" "$ENGINE" "$(docker version --format '{{.Server.Version}}')"
    check_version "Docker Compose" "$COMPOSE" "$(docker compose version --short 2>/dev/null || echo none)"
    check_memory "$(($(docker info --format '{{.MemTotal}}') / 1048576))"
    check_disk "$(docker info --format '{{.DockerRootDir}}')"
    check_socket
    check_project
  else
    if engine_can_come failed; then ok "no Docker engine yet: it will be installed and started"; fi
    check_memory "$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo 2>/dev/null || echo 0)"
    check_disk /var/lib
  fi
  if [ -n "$(setting TLS_HOST)" ]; then
    port_key=TLS_PORT
    check_port proxy 8443 TLS_PORT
  else
    port_key=PREFECT_PORT
    check_port server 4200 PREFECT_PORT
  fi
  check_port upstream 8000 UPSTREAM_PORT
  if [ "$(port_of "$port_key")" = "$(port_of UPSTREAM_PORT)" ]; then
    failed "UPSTREAM_PORT" "another port than $port_key" "$(port_of UPSTREAM_PORT) for both" \
      "set another in $(settings_place)"
  fi
  if [ "$failures" -gt 0 ]; then
    printf '\n%s of the above to mend, then: make up\n' "$failures" >&2
    exit 1
  fi
}

failed() {
  problem "$@"
  failures=$((failures + 1))
}

# at_least WANTED FOUND: compares the first two numbers of two versions.
at_least() {
  awk -v wanted="$1" -v found="$2" 'BEGIN {
    split(wanted, w, "."); sub(/^v/, "", found); split(found, f, ".")
    exit !(f[1] + 0 > w[1] + 0 || (f[1] + 0 == w[1] + 0 && f[2] + 0 >= w[2] + 0))
  }'
}

check_version() {
  if at_least "$2" "$3"; then ok "$1 $3"; else
    failed "$1" "$2 or newer" "$3" "update Docker (Debian, Ubuntu: from the distribution's or Docker's packages)"
  fi
}

check_memory() {
  if [ "$1" -ge "$MEMORY_MIB" ]; then ok "memory $1 MiB"; else
    failed "memory" "$MEMORY_MIB MiB or more" "$1 MiB" "give the machine (or Docker's virtual machine) more"
  fi
}

# check_disk FOLDER: the folder of the engine's own machine; where that is a virtual machine, its
# disk can't be seen from here and the project's own stands for it.
check_disk() {
  folder=$1
  [ -d "$folder" ] || folder=.
  free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1024)}')
  if [ "$free" -ge "$DISK_MIB" ]; then ok "disk $free MiB free in $folder"; else
    failed "disk" "$DISK_MIB MiB free in $folder" "$free MiB" "make room, for instance: docker system prune"
  fi
}

# A socket of another group than .env says is one that the worker can't open.
check_socket() {
  socket=$(env_value DOCKER_SOCKET)
  gid=$(env_value DOCKER_GID)
  [ "$(uname -s)" = Linux ] && [ "$socket" = /var/run/docker.sock ] && [ -S "$socket" ] || return 0
  found=$(stat -c %g "$socket")
  if [ "$gid" != "$found" ]; then
    failed "DOCKER_GID in .env" "$found, the group of $socket" "${gid:-nothing}" "set DOCKER_GID=$found in .env"
  fi
}

# Compose knows a stack by its name alone: a second copy under the same name would take over the
# first one's containers and database.
check_project() {
  project=$(setting COMPOSE_PROJECT_NAME)
  elsewhere=$(docker ps --all --filter "label=com.docker.compose.project=$project" \
    --format '{{.Label "com.docker.compose.project.working_dir"}}' | sort -u | while read -r folder; do
    # Through a symbolic link the same folder has two names.
    [ "$(cd "$folder" 2>/dev/null && pwd -P)" = "$(pwd -P)" ] || echo "$folder"
  done | head -n 1)
  if [ -n "$elsewhere" ]; then
    failed "COMPOSE_PROJECT_NAME" "a name of this copy's own" "$project, which is the stack of $elsewhere" \
      "set another in .env (no .env yet: COMPOSE_PROJECT_NAME=$project-2 make up), or: docker compose -p $project down"
  fi
}

# port_of KEY
port_of() {
  port=$(setting "$1")
  [ "$1" != TLS_PORT ] || port=${port:-443}
  printf '%s' "$port"
}

# check_port SERVICE INSIDE KEY: free, or held by this very stack, at whatever address.
check_port() {
  port=$(port_of "$3")
  case $port in *[!0-9]* | '' | ??????*) number=0 ;; *) number=$port ;; esac
  if [ "$number" -lt 1 ] || [ "$number" -gt 65535 ]; then
    failed "$3" "a port number, 1 to 65535" "$port" "set $3 in $(settings_place)"
    return
  fi
  if ! listening "$port"; then
    ok "port $port is free"
  elif docker compose port "$1" "$2" 2>/dev/null | grep -q ":$port\$"; then
    ok "port $port is this stack's"
  else
    failed "port $port" "free" "somebody listens there" \
      "stop that program, or set another $3 in $([ -e .env ] && echo .env || echo "the environment: $3=$((port + 100)) make up")"
  fi
}

# listening PORT: with what the machine has; where it has nothing, Docker will tell.
listening() {
  if command -v bash >/dev/null; then
    bash -c ": </dev/tcp/127.0.0.1/$1" 2>/dev/null
  elif command -v nc >/dev/null; then
    nc -z 127.0.0.1 "$1" >/dev/null 2>&1
  else
    return 1
  fi
}

check_env() {
  before=$failures
  good=".env will be written"
  if [ -e .env ]; then
    good=.env
    if grep -q "$(printf '\r')" .env; then
      failed ".env" "Unix line ends" "Windows line ends (CRLF)" "tr -d '\\r' <.env >.env.new && mv .env.new .env"
      return
    fi
    for key in COMPOSE_PROJECT_NAME PREFECT_PORT UPSTREAM_PORT HOST_PORTS $TLS SCHEDULE_TIMEZONE $URLS; do
      check_override "$key"
    done
  fi
  check_value COMPOSE_PROJECT_NAME '^[a-z0-9][a-z0-9_-]*$' "lower-case letters, digits, - and _"
  check_value SCHEDULE_TIMEZONE '^[A-Za-z0-9_+/-]+$' "an IANA time zone such as Europe/Berlin"
  for key in $URLS; do
    check_value "$key" '^(https?://[^[:space:]]+)?$' "a URL that begins with http:// or https://"
  done
  check_value PREFECT_API_AUTH_STRING '^[A-Za-z0-9.:_=+/@-]+:[A-Za-z0-9.:_=+/@-]+$' \
    "user:password of letters, digits and . : _ = + / @ -"
  check_value POSTGRES_PASSWORD '^[A-Za-z0-9.:_=+/@-]+$' "letters, digits and . : _ = + / @ -"
  check_value PREFECT_SERVER_ENCRYPTION_KEY '^[A-Za-z0-9_-]{43}=$' "44 characters, the last one ="
  check_value FORK_WORKERS '^[0-9]*$' "a number"
  check_value HOST_PORTS "^ *(all|((metadata|$PORT)( +(metadata|$PORT))*)?) *$" \
    "port numbers, 1 to 65535, and metadata, separated by blanks; or all"
  check_value FLOW_IMAGES '^[a-z0-9._/:@, -]*$' "image names, name:tag or name for any tag"
  check_value FLOW_VOLUMES '^[A-Za-z0-9_., -]*$' "names of volumes, no folders"
  check_value FLOW_LABELS '^[A-Za-z0-9_./, -]*$' "names of labels"
  check_value FLOW_MAX_MEMORY '^([1-9][0-9]*[kmgKMG]?)?$' "an amount of memory such as 4g"
  check_value FLOW_CPUS '^([0-9]+(\.[0-9]+)?)?$' "a number of CPUs such as 2 or 1.5"
  check_value BACKUP_AT '^(([01][0-9]|2[0-3]):[0-5][0-9])?$' "a time of the day such as 03:00"
  check_value BACKUP_KEEP '^([1-9][0-9]*)?$' "a number, 1 or more"
  check_timezone
  check_compose_file
  [ -z "$(written TLS_HOST)" ] || check_tls
  [ "$failures" -gt "$before" ] || ok "$good"
}

# check_override KEY: Compose would follow the environment this once, and .env the next time.
check_override() {
  value=$(printenv "$1" || env_value "$1")
  if [ "$value" != "$(env_value "$1")" ]; then
    case $1 in *WEBHOOK_URL) value="something else" ;; esac
    failed "$1 in the environment" "what .env says, or nothing" "$value" \
      "unset $1, or set it in .env"
  fi
}

settings_place() { if [ -e .env ]; then echo .env; else echo "the environment"; fi; }

# written KEY: its value in .env; before there is one, what would be written there, unless that is
# yet to be generated.
written() { if [ -e .env ]; then env_value "$1"; else setting "$1"; fi; }

# check_value KEY PATTERN EXPECTED
check_value() {
  value=$(written "$1")
  [ -e .env ] || [ -n "$value" ] || return 0
  if ! printf '%s\n' "$value" | grep -Eq "$2"; then
    case $1 in *PASSWORD | *STRING | *KEY | *WEBHOOK_URL) value=${value:+something else} ;; esac
    failed "$1 in $(settings_place)" "$3" "${value:-nothing}" \
      "set it there$([ -n "$value" ] || echo ' (never started: rm .env, and make up writes a new one)')"
  fi
}

check_timezone() {
  zone=$(written SCHEDULE_TIMEZONE)
  if [ -d /usr/share/zoneinfo ] && [ -n "$zone" ] && [ ! -f "/usr/share/zoneinfo/$zone" ]; then
    failed "SCHEDULE_TIMEZONE in $(settings_place)" "an IANA time zone such as Europe/Berlin" "$zone" "set it there"
  fi
}

# check_compose_file: .env names the files, and Compose then looks for no override by itself.
check_compose_file() {
  host=$(written TLS_HOST)
  files=$(printenv COMPOSE_FILE || written COMPOSE_FILE)
  override=docker-compose.override.yml
  # shellcheck disable=SC2016  # which Compose reads in .env alone
  if [ -e .env ]; then tls='${TLS_HOST:+:proxy/tls.yml}'; else tls=${host:+:proxy/tls.yml}; fi
  if [ -n "$host" ] && [ "${files%proxy/tls.yml*}" = "$files" ]; then
    failed "COMPOSE_FILE in $(settings_place)" "proxy/tls.yml among the files, for TLS_HOST" \
      "${files:-nothing}" "set it there, below TLS_HOST: COMPOSE_FILE=docker-compose.yml$tls"
  fi
  if [ -n "$files" ] && [ -e $override ] && [ "${files%"$override"*}" = "$files" ]; then
    failed "$override" "none that COMPOSE_FILE doesn't name" "one in this folder" \
      "remove it, or set in $(settings_place): COMPOSE_FILE=docker-compose.yml$tls:$override"
  fi
}

check_tls() {
  check_value TLS_HOST '^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$' \
    "a host name or an IPv4 address, without https:// and without a port"
  certificate=$(written TLS_CERTIFICATE)
  case $certificate in
    '') ;;
    acme)
      if ! printf '%s\n' "$host" | grep -Eq '\.[A-Za-z][A-Za-z0-9-]*$'; then
        failed "TLS_HOST in $(settings_place)" "a public host name, for acme" "$host" \
          "set it there, or another TLS_CERTIFICATE"
      fi
      ;;
    *://*) check_value TLS_CERTIFICATE '^https://[^[:space:]]+$' "an ACME server's URL that begins with https://" ;;
    *) check_certificate "$certificate/fullchain.pem" "$certificate/privkey.pem" ;;
  esac
}

# check_certificate CHAIN KEY
check_certificate() {
  for file in "$@"; do
    if [ ! -f "$file" ] || [ ! -r "$file" ]; then
      failed "TLS_CERTIFICATE in $(settings_place)" "a folder with fullchain.pem and privkey.pem" \
        "$file can't be read" "set it there: nothing, acme, an ACME server's URL or such a folder"
      return
    fi
  done
  # Where there is no openssl, the proxy will tell.
  command -v openssl >/dev/null || return 0
  if ! public=$(openssl x509 -in "$1" -noout -pubkey 2>/dev/null); then
    failed "$1" "a certificate in PEM form" "something else" "put the certificate there, the server's own first"
    return
  fi
  if [ "$(openssl pkey -in "$2" -passin pass: -pubout 2>/dev/null)" != "$public" ]; then
    failed "$2" "the key of $1, not encrypted" "another one, or none" "put the key there"
  fi
  if ! openssl x509 -in "$1" -noout -checkend 0 >/dev/null; then
    failed "$1" "a certificate that is valid" "one that $(openssl x509 -in "$1" -noout -enddate | sed 's/notAfter=/ended /')" \
      "renew it, then: make up"
  fi
  case $host in *[!0-9.]*) kind=host ;; *) kind=ip ;; esac
  if openssl x509 -in "$1" -noout "-check$kind" "$host" | grep -q 'NOT match'; then
    failed "$1" "a certificate for $host, TLS_HOST" \
      "one for $(openssl x509 -in "$1" -noout -ext subjectAltName 2>/dev/null | sed -n 's/^ *\(DNS\|IP\)/\1/p')" \
      "set TLS_HOST to a name in it, or put the right one there"
  fi
}

main "$@"
