#!/bin/sh
# Prefect reads no *_FILE variables: takes each PREFECT_…_FILE that names a Compose secret, exports
# its content under the name without _FILE, and becomes the command.
set -eu

for name in $(env | sed -n 's|^\(PREFECT_[A-Z_]*\)_FILE=/run/secrets/.*|\1|p'); do
  file=$(printenv "${name}_FILE")
  if [ ! -s "$file" ]; then
    echo "$name: expected a value in $file, found none that user $(id -u) can read; fix: make up" >&2
    exit 1
  fi
  export "$name=$(cat "$file")"
  unset "${name}_FILE"
done

exec "$@"
