#!/bin/sh
# venv.sh DIR [uv sync options]: makes DIR the Python environment that uv.lock describes, bringing
# uv from PyPI where there is none. Serves the project's own .venv and every image build.
set -eu
cd "$(dirname "$0")/.."

# Networks that re-sign TLS: image builds get the host's CA bundle as a secret.
if [ -s /run/secrets/ca_bundle ]; then
  export SSL_CERT_FILE=/run/secrets/ca_bundle PIP_CERT=/run/secrets/ca_bundle
fi

main() {
  dir=$1
  shift
  find_uv
  UV_PROJECT_ENVIRONMENT=$dir "$uv" sync --quiet --locked "$@"
  if [ -x "$dir/bin/uv" ]; then rm -rf "$dir.uv"; fi
}

find_uv() {
  for uv in "$dir/bin/uv" "$dir.uv/bin/uv" "$(command -v uv || true)"; do
    if [ -x "$uv" ]; then return; fi
  done
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    refuse "Python 3.11 or newer as python3" "$(python3 --version 2>&1 || true)"
  if ! message=$(python3 -m venv "$dir.uv" 2>&1); then
    rm -rf "$dir.uv"
    refuse "a Python that can make virtual environments" "$message"
  fi
  version=$(sed -n 's/.*"\(uv==[^"]*\)".*/\1/p' pyproject.toml)
  "$dir.uv/bin/python" -m pip --quiet --disable-pip-version-check install "$version"
  uv=$dir.uv/bin/uv
}

refuse() {
  printf 'expected: %s\nfound:    %s\nfix:      %s\n' "$1" "$2" \
    "install it (Debian, Ubuntu: sudo apt-get install python3-venv), then try again" >&2
  exit 1
}

main "$@"
