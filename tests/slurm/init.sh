#!/usr/bin/env bash
# Process 1 of the test cluster's head, and of each of its nodes; started by cluster.py inside new namespaces.
#   init.sh head STATE NODES    munged, slurmctld, a bridge, the nodes; ends, and all with it, when standard input ends
#   init.sh node STATE NAME     slurmd
#   init.sh plug STATE NAME     (in the head) starts one node and connects it
set -euo pipefail
self=$(readlink -f "$0") role=$1 state=$2

plug() {
  local name=$1 holder child='' end=$((SECONDS + 20))
  mkdir -p "$state/nodes/$name"
  rm -f "$state/nodes/$name/connected"
  unshare --mount --uts --net --pid --fork --kill-child --mount-proc \
    bash "$self" node "$state" "$name" </dev/null >>"$state/log/init-$name.log" 2>&1 &
  holder=$!
  until [ -n "$child" ]; do
    child=$(cut -d' ' -f1 "/proc/$holder/task/$holder/children")
    [ "$SECONDS" -lt "$end" ] || return 1
  done
  echo "$child" >"$state/nodes/$name/pid"
  ip link add "to-$name" type veth peer name eth0 netns "$child"
  ip link set "to-$name" master bridge up
  nsenter --target "$child" --net ip addr add "10.99.0.$((10 + ${name#n}))/24" dev eth0
  nsenter --target "$child" --net ip link set lo up
  nsenter --target "$child" --net ip link set eth0 up
  touch "$state/nodes/$name/connected"
}

case $role in
  head)
    trap 'touch "$state/failed"' ERR
    hostname head
    mount --bind "$state/conf" /etc/slurm
    mount --bind "$state/conf/hosts" /etc/hosts
    ip link set lo up
    ip link add bridge type bridge forward_delay 0
    ip addr add 10.99.0.1/24 dev bridge
    ip link set bridge up
    munged --force --key-file="$state/munge/key" --socket="$state/munge/socket" --pid-file="$state/munge/pid" \
      --log-file="$state/munge/log" --seed-file="$state/munge/seed"
    slurmctld -D </dev/null >>"$state/log/slurmctld.out" 2>&1 &
    for ((number = 1; number <= $3; number++)); do plug "n$number"; done
    touch "$state/started"
    read -r _ || true
    ;;
  node)
    hostname "$3"
    # A disk of its own; all else is shared with the other nodes, as on most clusters.
    mount -t tmpfs -o size=3g,mode=1777 tmpfs /dev/shm
    until [ -e "$state/nodes/$3/connected" ]; do sleep 0.05; done
    slurmd -D -N "$3" </dev/null >>"$state/log/slurmd-$3.out" 2>&1 &
    while true; do
      sleep 1000 &
      wait $! || true
    done
    ;;
  plug) plug "$3" ;;
esac
