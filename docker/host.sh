#!/bin/bash
# What every container of the testbed runs: take the testbed's MAC address and routes, start Apache on a server, then
# stay. The MAC is set here and not by the engine: old engines refuse it together with a user-defined network.
set -eu
rm -f /run/testbed-ready

address=$(ip -4 -o address show dev eth0 | sed -E 's|.* inet ([0-9.]+)/.*|\1|')
network=${address%.*}
number=${address##*.}
router=$network.1

ip link set dev eth0 address "$(printf 'aa:aa:aa:00:00:%02d' "$number")"
# No way out: what is sent in the testbed stays in it.
ip route flush exact 0.0.0.0/0
if [ "$address" != "$router" ]; then
    # Neighbours are on the same wire, and yet everything goes through the router.
    ip route replace "$router/32" dev eth0 scope link
    ip route replace "$network.0/24" via "$router"
    ip route flush exact "$network.0/24" proto kernel
fi
# Other addresses than the usual ones, when asked for.
[ "$network" = 198.18.1 ] || sed -i "s/198\.18\.1\./$network./g" /etc/lb/*.toml /usr/local/bin/echo_client.py ~/loadgen/*.load
case $HOSTNAME in
server*)
    # Left from an earlier run of this container: another process may have its number now.
    rm -f /var/log/apache2/apache.pid
    httpd -k start
    ;;
esac
touch /run/testbed-ready
exec sleep infinity
