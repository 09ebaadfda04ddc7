#!/usr/bin/env bash
# setup_neuron.sh MOUNT_PATH: what a shell and a job on a Trainium node need. The driver is HyperPod's: it is looked at
# and never replaced. Compiler and frameworks are in a virtual environment on the file system: python -m cluster env.
set -euo pipefail

mount_path=$1
etc=${ETC:-/etc}
sys=${SYS:-/sys}

say() { echo "$(date -u +%H:%M:%S) setup_neuron: $*"; }

mkdir -p "$etc/profile.d" "$etc/security/limits.d"
cat >"$etc/profile.d/trntune.sh" <<PROFILE
export PATH="/opt/aws/neuron/bin:/opt/amazon/efa/bin:\$PATH"
export NEURON_COMPILE_CACHE_URL="$mount_path/trntune/neuron_cache"
PROFILE
# EFA registers memory; torchrun and Lustre open many files.
cat >"$etc/security/limits.d/99-trntune.conf" <<'LIMITS'
* soft memlock unlimited
* hard memlock unlimited
* soft nofile 65536
* hard nofile 1048576
LIMITS

if [[ -r $sys/module/neuron/version ]]; then
    say "Neuron driver $(<"$sys/module/neuron/version")"
else
    say "the Neuron driver is not loaded: this instance type has no Trainium, or its image is not HyperPod's"
    exit 1
fi
# Everybody's own directories go below it, as in /tmp.
if mountpoint -q "$mount_path"; then
    mkdir -p "$mount_path/trntune"
    chmod 1777 "$mount_path/trntune"
fi
