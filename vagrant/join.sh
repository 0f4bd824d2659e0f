#!/bin/sh
# On the host: let the machine $1, at the address $2, join the server's cluster by a token of a few minutes.
set -eu
cd "$(dirname "$0")"
if vagrant ssh "$1" -c 'sudo systemctl is-active --quiet pelamis-agent' </dev/null; then
    echo "$1 is a node already"
    exit 0
fi
command=$(vagrant ssh server -c 'sudo pelamis token create --ttl 15m' </dev/null | tr -d '\r' | grep -o 'install agent .*')
vagrant ssh "$1" -c "if [ -d /opt/pelamis/bundle ]; then sudo /opt/pelamis/pelamis $command --node-ip $2 --bundle \
/opt/pelamis/bundle; else sudo /pelamis/pelamis $command --node-ip $2; fi" </dev/null
