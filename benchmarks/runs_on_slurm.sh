#!/usr/bin/env bash
# A run on a real SLURM: three jobs, one cancelled and the node's daemon restarted in the middle, then complete and equal
# bit for bit to a quiet run. Usage: runs_on_slurm.sh FOLDER. Needs slurm, whose slurmd it stops and starts (root), and
# `python` with yuzu, zarr and submitit.
set -eu
mkdir -p "$1"; cd "$1"
export XDG_CACHE_HOME="$PWD/cache"
host=$(hostname -s)
python - <<'PY'
import numpy as np
rng = np.random.default_rng(1)
with open("y.fa", "w") as file:
    for i in range(2000):
        file.write(f">s{i}\n{''.join(rng.choice(list('ACGT'), 500))}\n")
PY
run=(python -m yuzu ism --model yuzu.examples:load_ctcf_model --fasta y.fa --device cpu --output delta --target 0)
rm -rf slurm.zarr quiet.zarr slurm.zarr.jobs
"${run[@]}" --out slurm.zarr --submit slurm --jobs 3 --setting timeout_min=30
done_of() { ls slurm.zarr/scores 2>/dev/null | grep -c '^c\.' || true; }
wait_for() { for _ in $(seq 600); do [ "$(done_of)" -ge "$1" ] && return; sleep 0.5; done; echo "nothing is done" >&2; exit 1; }
wait_for 3
jobs=$(squeue -h -t R -o %i); first=${jobs%%$'\n'*}
echo "$(done_of) blocks done; cancelling $first"; scancel --signal=KILL "$first" || true; scancel "$first" || true
wait_for 8
echo "$(done_of) blocks done; the node goes down, its jobs are killed and queued again"
scontrol update nodename="$host" state=down reason=test; sleep 5
python -m yuzu status slurm.zarr
scontrol update nodename="$host" state=resume
for _ in $(seq 900); do [ -z "$(squeue -h)" ] && break; sleep 1; done
python -m yuzu status slurm.zarr
"${run[@]}" --out slurm.zarr --submit slurm --jobs 1 --wait  # completes what is left, if anything is
"${run[@]}" --out quiet.zarr
python - <<'PY'
import numpy as np, zarr
one, other = (zarr.open_group(name, mode="r")["scores"][:] for name in ("slurm.zarr", "quiet.zarr"))
assert np.isfinite(one).all() and np.array_equal(one, other)
print("equal bit for bit to a quiet run")
PY
