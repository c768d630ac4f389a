#!/usr/bin/env bash
# A sweep on a Slurm allocation: Ray's head and the driver on the first node, a Ray worker on each of the others.
#
# Edit      the #SBATCH lines; ENVIRONMENT, where ld3_dist is installed (on a file system that all nodes share).
# Storage   OUTPUT: a folder on a file system that all nodes share, or an object store by URL with credentials on every
#           node. Node-local scratch is refused: every node is asked before anything starts.
# Token     Ray's processes admit only who has the cluster's token. It is made in ~/.ray/auth_token, which all nodes must
#           share; where they do not share home, put a copy on a file system that they do, and its path in
#           RAY_AUTH_TOKEN_PATH. Whoever joins from outside needs the file and RAY_AUTH_MODE=token.
# Run       sbatch experiments/cluster/slurm.sh experiments/quickstart.yaml /shared/runs/quickstart
#           A preempted or timed-out job is requeued and goes on where it stopped; so does the same sbatch again.
#           From a login node that reaches the first node, into a cluster that is already there:
#               ray job submit --address http://HEAD:8265 --working-dir experiments -- ld3-dist sweep quickstart.yaml --output /shared/runs/quickstart --address auto
#SBATCH --job-name=ld3-dist
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

set -euo pipefail

experiment=${1:?"usage: sbatch slurm.sh EXPERIMENT.yaml OUTPUT"}
output=${2:?"usage: sbatch slurm.sh EXPERIMENT.yaml OUTPUT"}
ENVIRONMENT=${ENVIRONMENT:-"$PWD/.venv"}
PATH="$ENVIRONMENT/bin:$PATH"

export RAY_AUTH_MODE=token                # of the head, the workers and the driver alike
ray get-auth-token --generate > /dev/null # prints the token, which does not belong into the job's output

nodes=$SLURM_JOB_NUM_NODES
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap hostname -I | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs that share a node must not share a port
address=$ip:$port

started=()
driver=
# shellcheck disable=SC2329  # the traps below call it
finish() {
    code=$?
    [ -z "$driver" ] || kill -TERM "$driver" 2> /dev/null || true # ends within seconds and keeps what is finished
    [ -z "$driver" ] || wait "$driver" || true
    [ ${#started[@]} -eq 0 ] || kill "${started[@]}" 2> /dev/null || true
    [ "$code" -ne 143 ] || scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
}
trap finish EXIT
trap 'exit 143' TERM # Slurm's warning before the time is up, or a preemption

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$ip" --port="$port" --num-cpus="$cpus" --num-gpus="$gpus" --block &
started+=($!)
if [ "$nodes" -gt 1 ]; then
    sleep 10
    srun --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$head" --overlap \
        ray start --address="$address" --num-cpus="$cpus" --num-gpus="$gpus" --block &
    started+=($!)
fi

# a sweep is sized by the nodes that are there when it starts
python - "$address" "$nodes" << 'PYTHON'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
for _ in range(60):
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        if sum(node["Alive"] for node in ray.nodes()) >= wanted:
            sys.exit(0)
    except ConnectionError:
        pass
    time.sleep(5)
sys.exit(f"{address}: not all of {wanted} Ray nodes came up within 5 minutes; see their lines above")
PYTHON

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ld3-dist sweep "$experiment" --output "$output" --address "$address" &
driver=$!
result=0
wait "$driver" || result=$?
driver=
exit "$result"
