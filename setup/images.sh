#!/bin/sh
# Every image of the stack: the two base images, then ours, built on them.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

step "Base images"
setup/base-images.sh
setup/env.sh
step "Building the stack's images (seconds when nothing changed, a minute or two the first time)"
# shellcheck disable=SC2119  # all services
build || {
  setup/preflight.sh disk || true
  die "images" "a build that ends" "the error above" "mend it, then: make up"
}
ok "images are built"
