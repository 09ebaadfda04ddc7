#!/usr/bin/env bash
# start_slurm.sh ROLE CONTROLLER_ADDRESS RESOURCES: configures Slurm and starts this node's daemon.
# HyperPod's own agent writes slurm.conf on the controller. Where it hasn't within a minute, it is written here.
set -euo pipefail

role=$1 controller_address=$2 resources=$3
slurm_conf=${SLURM_CONF:-/opt/slurm/etc/slurm.conf}
units=${UNITS:-/etc/systemd/system}
patience=${SLURM_CONF_SECONDS:-60}

say() { echo "$(date -u +%H:%M:%S) start_slurm: $*"; }

controller() {
    for ((second = 0; second < patience; second++)); do
        grep -qswF "$controller_address" "$slurm_conf" && break
        sleep 1
    done
    if grep -qswF "$controller_address" "$slurm_conf"; then
        say "$slurm_conf is HyperPod's own"
    else
        mkdir -p "$(dirname "$slurm_conf")"
        bash write_slurm_conf.sh "$controller_address" "$resources" >"$slurm_conf.new"
        mv "$slurm_conf.new" "$slurm_conf"
        say "$slurm_conf was not there and is written"
    fi
    systemctl disable --now slurmd || true
    systemctl enable --now slurmctld
}

# The daemon of a worker asks the controller for the configuration. On a login node it only fetches it, for squeue and
# sbatch: the node is in no partition.
worker() {
    mkdir -p "$units/slurmd.service.d"
    printf '[Service]\nEnvironment="SLURMD_OPTIONS=--conf-server %s"\n' "$controller_address" \
        >"$units/slurmd.service.d/trntune.conf"
    systemctl daemon-reload
    systemctl disable --now slurmctld || true
    systemctl enable --now slurmd
}

if [[ $role == controller ]]; then controller; else worker; fi
say "$role is started"
