# shellcheck shell=bash disable=SC2154
# Sourced by train.sh and test.sh: how a life of a job ends, and whether there is another.

# What scontrol says of the job; asked again for a while, since Slurm's controller may be busy or starting anew.
job_facts() {
  local tries
  for ((tries = 0; tries < 20; tries++)); do
    scontrol show job -o "$job" && return
    sleep 1
  done
  return 1
}

job_state() { job_facts | grep -o 'JobState=[A-Z_]*' | head -n 1 | cut -d= -f2; }

# It ends what this shell runs, also scontrol amid its answer: only the job's state tells a refusal.
requeue() { scontrol requeue "$job" || [ "$(job_state)" != RUNNING ]; }

# The job's list of excluded nodes, with one more.
excluded_with() {
  local list
  list=$(job_facts | grep -o 'ExcNodeList=[^ ]*' | head -n 1 | cut -d= -f2)
  case $list in '' | '(null)') echo "$1" ;; *) echo "$list,$1" ;; esac
}

# come_back REASON [NODE]: asks for another life, without the node; this one ends here.
come_back() {
  local state exclude='' count=0
  state=$(job_state)
  if [ "$state" != RUNNING ]; then
    # After scancel a requeue would bring the job back; after a preemption or a lost node Slurm requeues it itself.
    say "$1; the job is ${state:-unknown to Slurm}: not asked for another life"
    echo "ended: $1, the job was ${state:-unknown}" >"$life.end"
    exit 75
  fi
  if [ -n "${2:-}" ]; then
    exclude=$(excluded_with "$2")
    count=$(scontrol show hostnames "$exclude" | wc -l)
    if [ "$count" -gt "$MAX_EXCLUDED_NODES" ]; then
      say "$1: with it $count nodes would be left out ($exclude), more than MAX_EXCLUDED_NODES: giving up"
      echo "failed: $1" >"$life.end"
      exit 1
    fi
    say "leaving out $exclude from now on"
  fi
  ended=0
  say "$1: asking for another life"
  echo "requeued: $1" >"$life.end"
  if ! requeue && ! { sleep 2; requeue; }; then
    say "this job may not be requeued: submit it again, it goes on from its last checkpoint"
    echo "failed: $1, and Slurm refused to requeue" >"$life.end"
    exit 75
  fi
  # Slurm now ends this shell. Nodes can be excluded from the moment that the job is pending again.
  until [ -z "$exclude" ] || scontrol update JobId="$job" ExcNodeList="$exclude" 2>/dev/null; do sleep 0.2; done
  for ((count = 0; count < 300 && !ended; count++)); do sleep 0.2; done
  exit 75
}

# end_life RC: of the launcher. Its code is lost or hidden in many ways, so the trainer's marks decide.
end_life() {
  if [ -f "$life.stopped" ]; then come_back "stopped by $(cat "$life.stopped")"; fi
  if [ -f "$life.done" ]; then
    say "done, $(cat "$life.done")"
    echo "done" >"$life.end"
    exit 0
  fi
  local rc=$1
  # A launcher that started nobody says 0.
  [ "$rc" != 0 ] || rc=1
  say "failed with $rc: the ranks left without having stopped or finished; logs of each in $logs"
  echo "failed: exit code $rc" >"$life.end"
  exit "$rc"
}
