#!/bin/sh
# The flow image's entry point: the stock command of a flow run goes a shorter way to the same end.
set -eu

# Whoever sets one of these, to whatever, asks for what the stock command alone can do.
stock=${PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES:-}${PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR:-}
if [ "$*" = "prefect flow-run execute" ] && [ -z "$stock" ]; then
  exec entrypoint.sh python -m prefect_fork.execute
fi

# The stock command finds out by itself; the worker's signals, meant for ours, must not end it.
trap '' USR1 USR2
exec entrypoint.sh "$@"
