#!/bin/sh
# What udhcpc calls with what it was given.
case "$1" in
bound | renew)
    ip addr flush dev "$interface" scope global
    ip -4 addr add "$ip/${mask:-24}" dev "$interface"
    [ -n "$router" ] && ip route replace default via "${router%% *}"
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    ;;
deconfig) ip link set "$interface" up ;;
esac
