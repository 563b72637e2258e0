#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, to try LAUNCHER=slurm on (Debian or Ubuntu, as root; docs/clusters.md).
#   scripts/slurm_node.sh start cache/slurm_node && export SLURM_CONF=$PWD/cache/slurm_node/slurm.conf
#   scripts/slurm_node.sh stop cache/slurm_node
set -euo pipefail

usage() { sed -n '2,4p' "$0" | cut -c3- >&2; exit 1; }
[ $# = 2 ] || usage
mkdir -p "$2"
folder=$(realpath "$2")

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -s "$folder/$daemon.pid" ] || continue
        pid=$(cat "$folder/$daemon.pid")
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "$daemon" ] || kill "$pid"
        while [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ]; do sleep 0.1; done
    done
}

start() {
    [ "$(id -u)" = 0 ] || { echo "slurm_node: starting Slurm's daemons needs root." >&2; exit 1; }
    if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
    fi
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    [ -e "$folder/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
    cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
    slurmctld
    slurmd -N "$(hostname -s)"
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ] || { sinfo >&2; exit 0; }
        sleep 0.2
    done
    echo "slurm_node: the node did not come up; see the logs in $folder." >&2
    exit 1
}

case $1 in
    start) stop; start ;;
    stop) stop ;;
    *) usage ;;
esac
