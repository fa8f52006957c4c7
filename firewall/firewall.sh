#!/bin/sh
# Refuses what the stack's containers ask of this machine itself, but for what flows, on BRIDGE, ask
# of HOST_PORTS; and what is asked of containers past their published ports. By a table in the
# machine's packet filter. `firewall.sh check`: is it there?
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

# Where clouds tell whoever asks a machine's own credentials.
METADATA="169.254.0.0/16, 100.100.100.200, 168.63.129.16"
METADATA_6="fe80::/10, fd00:ec2::254"

# rules: a whole new table in the place of the old one, in one step.
rules() {
  ours="{ $BRIDGE, backend-${BRIDGE#flows-}, front-${BRIDGE#flows-} }"
  echo "table inet $BRIDGE; delete table inet $BRIDGE; table inet $BRIDGE {"
  echo "chain refuse { meta l4proto tcp reject with tcp reset; reject; }" # one ICMP message a second

  echo "chain input { type filter hook input priority filter - 10"
  echo "iifname != $ours accept; ct state established,related accept"
  # A name server that this machine has at an address of its own is asked by the containers themselves.
  sed -n 's/^nameserver  *\([0-9.]*\)$/ip daddr \1 meta l4proto { tcp, udp } th dport 53 accept/p' /etc/resolv.conf
  for port in $HOST_PORTS; do
    [ "$port" = metadata ] || echo "iifname $BRIDGE meta l4proto { tcp, udp } th dport $port accept"
  done
  echo "goto refuse; }"

  echo "chain forward { type filter hook forward priority filter - 10"
  echo "ct state established,related accept"
  case " $HOST_PORTS " in *" metadata "*) ;; *)
    echo "iifname $ours ip daddr { $METADATA } meta l4proto { tcp, udp } th dport != 53 goto refuse"
    echo "iifname $ours ip6 daddr { $METADATA_6 } goto refuse"
    ;;
  esac
  # An engine before 28 lets neighbours through that send to a container's own address.
  echo "oifname != $ours accept; iifname $ours accept; ct status dnat accept; drop; }; }"
}

remove() { nft delete table inet "$BRIDGE" 2>/dev/null || true; }

# The table goes with the last container on the bridge, not when this one is merely replaced.
leave() {
  [ -n "$(ls "/sys/class/net/$BRIDGE/brif" 2>/dev/null)" ] || remove
  exit 0
}

case ${1:-} in check) loaded ;; *) main ;; esac
