#!/usr/bin/env bash
# Run by HyperPod as root on every new node. What it prints is in CloudWatch: LifecycleConfig/<group>/<instance-id>.
# The others are started by bash: files that come from S3 are not executable.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

RESOURCES=${SAGEMAKER_RESOURCE_CONFIG_PATH:-/opt/ml/config/resource_config.json}
MOUNT_PATH=/fsx
if [[ -f trntune.env ]]; then
    # shellcheck source=/dev/null
    source ./trntune.env
fi

say() { echo "$(date -u +%H:%M:%S) on_create: $*"; }
trap 'say "failed at line $LINENO: $BASH_COMMAND"' ERR

# Addresses of this node, to find itself in HyperPod's list: a node with EFA has several.
facts=$(python3 describe_node.py "$RESOURCES" provisioning_parameters.json "${NODE_ADDRESSES:-$(hostname -I)}")
eval "$facts"
# shellcheck disable=SC2154  # set by the line before
say "this is a $role of group $group, controller $controller_address"

# shellcheck disable=SC2154
if [[ -n $fsx_dns_name ]]; then
    bash mount_fsx.sh "$fsx_dns_name" "$fsx_mount_name" "$MOUNT_PATH"
fi
if [[ $role == worker ]]; then
    bash setup_neuron.sh "$MOUNT_PATH"
fi
bash start_slurm.sh "$role" "$controller_address" "$RESOURCES"
say "done"
