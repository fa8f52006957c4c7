#!/bin/sh
# [FLOW=flow/deployment] [OSV_URL=https://…] audit.sh: is the running stack, with a flow container, as
# locked down as it is meant to be? Exit code 0 only if no rule is broken. The host's Docker says what
# there is, and ops/audit.py, in the server's container, judges it: the secrets that it looks for get
# there through a pipe, not by a command line.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

FLOW=${FLOW:-suggest-activity/daily}

main() {
  require_server
  umask 077
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  interruptible
  mkdir "$work/containers" "$work/images" "$work/histories" "$work/processes" "$work/logs"
  project=$(setting COMPOSE_PROJECT_NAME)

  say "Looking at the stack, and at a flow container that waits for its time (a minute)"
  advisories
  flow_container
  for id in $(containers); do [ -e "$work/containers/$id" ] || container "$id"; done
  updates
  # shellcheck disable=SC2046  # a name a word
  docker volume inspect $(sort -u "$work/volumes") >"$work/volumes.json" 2>/dev/null || true
  { docker compose exec -T firewall firewall.sh check </dev/null 2>&1 && echo loaded; } >"$work/filter" || true
  docker network ls --quiet --filter "label=com.docker.compose.project=$project" |
    xargs docker network inspect >"$work/networks.json"
  ls -ld .env .env.before-restore .secrets backups >"$work/modes" 2>/dev/null || true
  # .env first: the logs, which may be long, are searched while they arrive.
  # shellcheck disable=SC2046  # a file a word
  tar -cf - .env docker-compose.yml uv.lock $(ls ./*/Dockerfile ./*/*/Dockerfile) -C "$work" . |
    docker compose exec -T server entrypoint.sh python -m ops.audit "$project" "$PWD" "$(pwd -P)"
}

# What is known of the packages in uv.lock; where no database answers, why not.
advisories() {
  uv=.venv/bin/uv
  [ -x "$uv" ] || uv=$(command -v uv) || {
    echo "no uv here, make venv brings it" >"$work/advisories.error"
    return
  }
  UV_HTTP_RETRIES=1 "$uv" audit --quiet --frozen --preview-features audit-command,json-output \
    --output-format json ${OSV_URL:+--service-url "$OSV_URL"} \
    >"$work/advisories.json" 2>"$work/advisories.error" || true
}

# A scheduled run's container is there before its time and waits for it: long enough to be looked at.
flow_container() {
  run=$(docker compose exec -T server entrypoint.sh prefect --no-prompt deployment run "$FLOW" \
    --start-in "25 seconds" </dev/null 2>&1 |
    grep -Eo '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' | head -n 1)
  [ -n "$run" ] || die "FLOW" "a deployment that the server has, to look at a run's container" "$FLOW" \
    "make audit FLOW=flow/deployment"
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    id=$(docker ps --quiet --no-trunc --filter "label=io.prefect.flow-run-id=$run")
    [ -z "$id" ] || break
    sleep 1
  done
  echo "$run" >"$work/run"
  [ -z "$id" ] || container "$id" # without one, a rule is broken
}

# containers: the services', and those of flow runs, wherever these are connected to.
containers() {
  {
    docker ps --all --quiet --no-trunc --filter "label=com.docker.compose.project=$project"
    for filter in "network=${project}_flows" "ancestor=$project-flow:local"; do
      docker ps --all --quiet --no-trunc --filter label=io.prefect.flow-run-id --filter "$filter"
    done
  } | sort -u
}

# container ID: all that Docker says of it; nothing of one that is gone meanwhile.
container() {
  docker inspect "$1" >"$work/containers/$1" 2>/dev/null || {
    rm -f "$work/containers/$1"
    return
  }
  found=$(docker inspect --format \
    '{{.Image}}{{range .Mounts}}{{if eq .Type "volume"}} {{.Name}}{{end}}{{end}}' "$1" 2>/dev/null) || {
    rm -f "$work/containers/$1"
    return
  }
  image=${found%% *}
  echo "${found#"$image"}" | tr ' ' '\n' >>"$work/volumes"
  [ -e "$work/images/${image#*:}" ] || {
    docker image inspect "$image" >"$work/images/${image#*:}"
    docker history --no-trunc --format '{{.CreatedBy}} {{.Comment}}' "$image" >"$work/histories/${image#*:}"
  }
  docker top "$1" >"$work/processes/$1" 2>/dev/null || true
  docker logs "$1" >"$work/logs/$1" 2>&1 || true
}

# What Debian has by now that an image hasn't: its lists, fetched once, beside each image's packages.
updates() {
  mkdir "$work/packages"
  for image in "$work"/images/*; do
    list=$work/packages/${image##*/}
    docker run --rm --network none --read-only --cap-drop ALL --entrypoint cat "sha256:${image##*/}" \
      /var/lib/dpkg/status >"$list" 2>/dev/null || true
    [ -s "$list" ] || rm "$list"
  done
  # shellcheck disable=SC2016  # the container's variables
  tar -cf - -C "$work/packages" . | docker run --rm --interactive debian:trixie-slim sh -c '
    mkdir /packages && tar -xf - -C /packages
    apt-get update -qq -o APT::Update::Error-Mode=any || exit
    apt-get indextargets --format "\$(CODENAME)" | grep -q security || echo "all no security suite in the sources"
    for status in /packages/*; do
      plan=$(apt-get upgrade --simulate -o Dir::State::status="$status") || plan="Inst unknown: apt failed"
      echo "$plan" | sed -n "s|^Inst|${status##*/}|p"
      echo "done ${status##*/}"
    done
    echo done all' >"$work/updates" 2>"$work/updates.error" || true
  rm -r "$work/packages"
}

main
