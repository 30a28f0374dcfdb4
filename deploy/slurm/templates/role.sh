#!/bin/bash
# What every step does on its node, in the container if there is one: looks at the directory, at the versions, then
# becomes the role. Usage: role.sh <write|compare> <role's name> <command…>
set -u
run={{run}}
python={{python}}
mode=$1 name=$2
shift 2

if [[ $(cat "$run/slurm/token" 2>/dev/null) != {{token}} ]]; then
    echo "slurm: $name: $run on ${SLURMD_NODENAME:-$(hostname)} is not the directory in which this run was set up:" \
        "put run.dir on a file system that all nodes share, at the same path (and into slurm.container_mounts)" >&2
    exit 71
fi
"$python" -m deploy.slurm.versions "$mode" "$run/slurm/versions.json" "$name" || exit 72
exec "$@"
