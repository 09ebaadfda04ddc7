#!/usr/bin/env bash
# write_slurm_conf.sh CONTROLLER_ADDRESS RESOURCES: prints slurm.conf for the nodes that HyperPod has listed. Run on the
# controller. SLURM_EXTRA has lines of your own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

controller_address=$1 resources=$2
run=${SLURM_RUN:-/var/run}
logs=${SLURM_LOGS:-/var/log/slurm}

cat <<CONF
ClusterName=trntune
SlurmctldHost=$(hostname -s)($controller_address)
SlurmctldPort=${SLURMCTLD_PORT:-6817}
SlurmdPort=${SLURMD_PORT:-6818}
SlurmUser=${SLURM_USER:-slurm}
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=${SLURM_STATE:-/var/spool/slurmctld}
SlurmdSpoolDir=${SLURM_SPOOL:-/var/spool/slurmd}
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd.log
# Nodes fetch this file from the controller.
SlurmctldParameters=enable_configless
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# What is written here is taken, whatever a node finds in itself.
SlurmdParameters=config_overrides
ReturnToService=2
# Training saves when it is told to leave; give it time for that.
KillWait=120
SlurmdTimeout=120
CONF
printf '%s\n' "${SLURM_EXTRA:-# no lines of your own}"
python3 describe_node.py "$resources" provisioning_parameters.json --slurm-conf
