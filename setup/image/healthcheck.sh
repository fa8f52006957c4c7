#!/bin/bash
# healthcheck.sh PORT PATH: is there a 200 at http://127.0.0.1:PORT/PATH? In bash alone, because it
# runs for as long as the stack lives: a Python would burn more CPU than the service it watches.
set -euo pipefail

exec 3<>"/dev/tcp/127.0.0.1/$1"
printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&3
read -r -t 4 _ status _ <&3
[[ $status == 200 ]]
