#!/bin/sh
# On the server, as root: install it at the address given. Again, it changes nothing.
set -eu
cd /
folder=/pelamis bundle=""
if [ -f /tmp/pelamis-bundle.tar ]; then
    folder=/opt/pelamis bundle="--bundle /opt/pelamis/bundle"
    mkdir -p "$folder"
    tar -xf /tmp/pelamis-bundle.tar -C "$folder" --strip-components=1
    rm /tmp/pelamis-bundle.tar # it may lie in memory
fi
# shellcheck disable=SC2086  # none or two words
exec "$folder/pelamis" install server --node-ip "$1" $bundle
