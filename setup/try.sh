#!/bin/sh
# A look without Docker: Prefect's own server for one process, on SQLite, the upstream on the
# loopback, one run of the daily flow. Leaves nothing running, and nothing but .venv and .venv.uv.
set -eu
cd "$(dirname "$0")/.."
. setup/lib.sh

step "Python packages (the first time a minute)"
# --inexact: what tests and linters brought to the same .venv stays.
setup/venv.sh .venv --no-dev --group upstream --inexact
exec .venv/bin/python setup/try.py
