# The number of this job or task. A task of an array must be named within it: its last task's own number is the array's,
# and what Slurm is asked of that number it does to all tasks.
own=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
own=${own:-$SLURM_JOB_ID}

say() {  # <words…>: into the job's log, and where `python -m deploy.slurm status` finds the last of them
    printf '%s slurm INFO %s: %s (job %s on %s, start %s)\n' "$(date '+%F %T,%3N')" "$name" "$*" \
        "$SLURM_JOB_ID" "$SLURMD_NODENAME" "$((${SLURM_RESTART_COUNT:-0} + 1))" | tee "$run/slurm/state/$name"
}

finish() {  # <exit code> <why>
    say "$2"
    exit "$1"
}

again() {  # <why>: back into the queue, for any node
    say "$1; back into the queue"
    scontrol requeue "$own"
    exit 0
}

preempted() {  # whether Slurm has taken the node for another job and leaves this one its GraceTime, to end by itself
    [[ $(scontrol show job "$own" 2>/dev/null) =~ \ PreemptTime=[0-9] ]]
}

failed() {  # <exit code> <why>: back into the queue, if that has not happened too often
    local record=$run/slurm/failures/$name
    ((SECONDS >= {{reset_seconds}})) && rm -f "$record"
    echo "$2" >>"$record"
    local times
    times=$(wc -l <"$record")
    ((times <= {{restarts}})) && again "$2 (failure $times, {{restarts}} are made good)"
    [[ $name != learner ]] || end_run "$1" "$2, for the $times. time, {{restarts}} are made good"
    finish "$1" "$2, for the $times. time, {{restarts}} are made good"
}

await() {  # <pid>: its end, through all signals that this script gets; its exit code is $code
    while true; do
        wait "$1"
        code=$?
        kill -0 "$1" 2>/dev/null || break
    done
    wait "$1" 2>/dev/null
    local again=$?
    ((again == 127)) || code=$again
}

last_words() {  # <log>: its last line that says something
    grep -v '^srun: \|^slurmstepd\|^[[:space:]]*$' "$run/logs/$1" 2>/dev/null | tail -n 1 | cut -c 1-300
}

node_address() {  # of this node, as the others reach it
    local found
    found=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    [[ $found =~ ^[0-9.]+$ ]] || found=$(getent ahostsv4 "$found" | awk '$1 !~ /^127\./ { print $1; exit }')
    echo "${found:-$(hostname -I | awk '{ print $1 }')}"
}

send_home() {  # the jobs of this run that still wait for a node, and those that no broker could tell of the end
    local name
    for name in {{actors}} {{verifiers}}; do
        scancel --quiet --state=PENDING --name="$name"
        [[ -e $run/broker.json ]] || scancel --quiet --batch --signal=USR2 --state=RUNNING --name="$name"
    done
}
