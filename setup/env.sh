#!/bin/sh
# Writes .env once, from .env.example: secrets generated, this machine's facts found, and what the
# environment says taken over. Then lays the secrets out as Compose wants them, a file each.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

main() {
  umask 077
  [ -e .env ] || write_env
  backups_folder
  write_secret api_auth_string PREFECT_API_AUTH_STRING server deploy worker fork-worker
  write_secret postgres_password POSTGRES_PASSWORD migrate server
  write_secret encryption_key PREFECT_SERVER_ENCRYPTION_KEY server
  write_secret alert_webhook_url ALERT_WEBHOOK_URL deploy
  [ -z "$(env_value TLS_HOST)" ] || write_certificate
}

write_env() {
  new=$(mktemp .env.XXXXXX)
  trap 'rm -f "$new"' EXIT
  interruptible
  while IFS= read -r line; do
    case $line in
      [A-Z]*=*)
        key=${line%%=*}
        printf '%s=%s\n' "$key" "$(given "$key" || initial "$key" "${line#*=}")"
        ;;
      *) printf '%s\n' "$line" ;;
    esac
  done <.env.example >"$new"
  mv "$new" .env
  ok ".env written, with a login and passwords of its own"
}

# given KEY: what the environment says. But for PREFECT_API_URL: who uses Prefect elsewhere has it set.
given() {
  [ "$1" != PREFECT_API_URL ] && printenv "$1"
}

# initial KEY DEFAULT: the value of KEY in a new .env. A stack whose .env was lost has its secrets still.
initial() {
  case $1 in
    PREFECT_API_AUTH_STRING) cat .secrets/api_auth_string 2>/dev/null || printf 'admin:%s' "$(random 24)" ;;
    POSTGRES_PASSWORD) cat .secrets/postgres_password 2>/dev/null || random 32 ;;
    PREFECT_SERVER_ENCRYPTION_KEY) cat .secrets/encryption_key 2>/dev/null || encryption_key ;;
    DOCKER_SOCKET) docker_socket ;;
    DOCKER_GID) docker_gid ;;
    CA_BUNDLE) ca_bundle ;;
    *) printf '%s' "$2" ;;
  esac
}

# Where the engine's own machine has its socket. Docker Desktop's engine lives in a virtual machine,
# where it is in the usual place, whatever the client's side says.
docker_socket() {
  host=${DOCKER_HOST:-$(docker context inspect --format '{{.Endpoints.docker.Host}}')}
  case $(uname -s)-$host in
    Linux-unix://*/.docker/desktop/*) echo /var/run/docker.sock ;;
    Linux-unix://*) echo "${host#unix://}" ;;
    *) echo /var/run/docker.sock ;;
  esac
}

# The socket's group as a container sees it: right for rootless engines and virtual machines, too.
docker_gid() {
  docker run --rm --volume "$(docker_socket):/docker.sock" debian:trixie-slim stat -c %g /docker.sock
}

ca_bundle() {
  for bundle in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt \
    /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem /dev/null; do
    if [ -r "$bundle" ]; then
      printf '%s' "$bundle"
      return
    fi
  done
}

write_secret() {
  file=$1
  value=$(env_value "$2")
  shift 2
  lay_out "$file" "$value" "$@"
}

# A certificate of one's own, and its key, which no container could read where it is. Empty: none.
write_certificate() {
  folder=$(own_certificate)
  for file in fullchain privkey; do
    lay_out "tls_$file" "${folder:+$(cat "$folder/$file.pem")}" proxy
  done
}

# lay_out FILE VALUE SERVICE…. Compose mounts the file as it is and a container's user has to be
# able to read it, so the file is readable and the folder around it closed to everybody else. A
# container reads its secrets when it starts: those of the services are made anew by the next `up`.
lay_out() {
  file=.secrets/$1
  value=$2
  shift 2
  mkdir -p .secrets
  if [ -e "$file" ]; then
    if [ "$(cat "$file")" = "$value" ]; then return; fi
    docker compose rm --stop --force "$@" >/dev/null 2>&1
  fi
  printf '%s' "$value" >"$file"
  chmod 644 "$file"
}

main
