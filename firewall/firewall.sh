#!/bin/sh
# Refuses what the containers on BRIDGE ask of this machine itself, but for HOST_PORTS, by a table in
# the machine's packet filter. `firewall.sh check`: is it there?
set -eu
# shellcheck source=setup/lib.sh
. lib.sh

main() {
  trap leave INT TERM
  load
  # Whoever starts his own firewall anew may empty the whole filter.
  while sleep 15 & wait $!; do loaded || load; done
}

loaded() { [ "$HOST_PORTS" = all ] || nft list table inet "$BRIDGE" >/dev/null 2>&1; }

load() {
  if [ "$HOST_PORTS" = all ]; then
    remove
    say "HOST_PORTS=all: flows may reach every port of this machine"
    return
  fi
  [ -e "/sys/class/net/$BRIDGE" ] ||
    die "network" "the bridge $BRIDGE" "none of that name" "make down, then: make up"
  rules | nft -f - ||
    die "packet filter" "a kernel with nf_tables, and port numbers in HOST_PORTS ($HOST_PORTS)" "the error above" \
      "mend that, or have flows reach all of this machine: HOST_PORTS=all in .env; then: make up"
  say "Flows may reach these ports of this machine: ${HOST_PORTS:-none}"
}

# rules: a whole new table in the place of the old one, in one step.
rules() {
  echo "table inet $BRIDGE; delete table inet $BRIDGE; table inet $BRIDGE { chain input {"
  echo "type filter hook input priority filter - 10"
  echo "iifname != $BRIDGE accept; ct state != new accept"
  # A name server that this machine has at an address of its own is asked by the containers themselves.
  sed -n 's/^nameserver  *\([0-9.]*\)$/ip daddr \1 meta l4proto { tcp, udp } th dport 53 accept/p' /etc/resolv.conf
  for port in $HOST_PORTS; do echo "meta l4proto { tcp, udp } th dport $port accept"; done
  echo "meta l4proto tcp reject with tcp reset; reject; }; }" # the kernel sends one ICMP message a second
}

remove() { nft delete table inet "$BRIDGE" 2>/dev/null || true; }

# The table goes with the last container on the bridge, not when this one is merely replaced.
leave() {
  [ -n "$(ls "/sys/class/net/$BRIDGE/brif" 2>/dev/null)" ] || remove
  exit 0
}

case ${1:-} in check) loaded ;; *) main ;; esac
