#!/usr/bin/env bash
# mount_fsx.sh DNS_NAME MOUNT_NAME PATH: mounts the FSx for Lustre file system, now and at every start of the node.
set -euo pipefail

dns_name=$1 mount_name=$2 path=$3
attempts=${MOUNT_ATTEMPTS:-10}
pause=${MOUNT_PAUSE:-15}
fstab=${FSTAB:-/etc/fstab}

say() { echo "$(date -u +%H:%M:%S) mount_fsx: $*"; }

if mountpoint -q "$path"; then
    say "$path is mounted already"
    exit 0
fi
# A new VPC's name server may need its time, too.
for ((attempt = 1; ; attempt++)); do
    getent hosts "$dns_name" >/dev/null && break
    if ((attempt >= attempts)); then
        say "$dns_name does not resolve: is fsx_dns_name in provisioning_parameters.json right, and DNS on in the VPC?"
        exit 1
    fi
    sleep "$pause"
done

mkdir -p "$path"
line="$dns_name@tcp:/$mount_name $path lustre noatime,flock,_netdev,x-systemd.requires=network-online.target 0 0"
if ! grep -qxF "$line" "$fstab"; then
    sed -i "\\|^[^ ]* $path lustre |d" "$fstab" # of a run before, with other names
    echo "$line" >>"$fstab"
fi
modprobe lustre
for ((attempt = 1; ; attempt++)); do
    mount "$path" && break
    if ((attempt >= attempts)); then
        say "$dns_name@tcp:/$mount_name can't be mounted: is fsx_mountname right, and does the security group let its"
        say "own members in (TCP 988, 1018 to 1023)?"
        exit 1
    fi
    say "attempt $attempt of $attempts failed, once more in $pause s"
    sleep "$pause"
done
probe="$path/.probe-$(hostname)"
touch "$probe"
rm "$probe"
say "$path is mounted"
