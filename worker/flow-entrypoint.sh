#!/bin/sh
# The flow image's entry point: the stock command of a flow run goes a shorter way to the same end.
set -eu

# Whoever has Prefect install projects at run time needs the stock way.
if [ "$*" = "prefect flow-run execute" ] && [ -z "${PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES:-}" ]; then
  exec python -m flow_run_execute
fi

# The stock command cancels by itself; the worker's signal, meant for ours, must not end it.
trap '' USR1
exec entrypoint.sh "$@"
