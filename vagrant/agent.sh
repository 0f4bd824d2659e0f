#!/bin/sh
# On an agent, as root: unpack the bundle when there is one. Joining needs the server's token: join.sh, from the host.
set -eu
if [ -f /tmp/pelamis-bundle.tar ]; then
    mkdir -p /opt/pelamis
    tar -xf /tmp/pelamis-bundle.tar -C /opt/pelamis --strip-components=1
    rm /tmp/pelamis-bundle.tar # it may lie in memory
fi
