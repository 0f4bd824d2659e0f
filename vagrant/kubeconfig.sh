#!/bin/sh
# On the host: the administrator's kubeconfig of the cluster, for the kubectl of this host.
set -eu
cd "$(dirname "$0")"
umask 077
vagrant ssh server -c 'sudo cat /etc/pelamis/admin.kubeconfig' </dev/null | tr -d '\r' > kubeconfig.new
mv kubeconfig.new kubeconfig
echo "export KUBECONFIG=$PWD/kubeconfig"
