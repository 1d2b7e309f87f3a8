#!/bin/bash
# Both limits of each pod as peers make them: tc_loop.sh add|replace|del EGRESS INGRESS PID...
#
# tbf at the pod's end of its veth, and at the host's end, podN, for ingress.
set -eu
verb=$1 egress=$2 ingress=$3
shift 3
number=0
for pid; do
    if [ "$verb" = del ]; then
        nsenter "--net=/proc/$pid/ns/net" tc qdisc del dev eth0 root
        tc qdisc del dev "pod$number" root
    else
        nsenter "--net=/proc/$pid/ns/net" \
            tc qdisc "$verb" dev eth0 root tbf rate "$egress" burst 128kb latency 25ms
        tc qdisc "$verb" dev "pod$number" root tbf rate "$ingress" burst 128kb latency 25ms
    fi
    number=$((number + 1))
done
