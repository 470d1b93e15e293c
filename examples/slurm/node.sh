#!/bin/bash
# One node's part of train.sbatch: torchrun with a rank a GPU. USR1 goes to the ranks, and not to torchrun itself.
(
  trap '' USR1
  exec torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${DDIT_RANKS:-${SLURM_GPUS_ON_NODE:-1}}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$DDIT_RENDEZVOUS" -m ddit.train "$@"
) &
launcher=$!
trap 'pkill -USR1 -P $launcher' USR1
wait $launcher
code=$?
while kill -0 $launcher 2>/dev/null; do # the signal ended the waiting, not the launcher
  wait $launcher
  code=$?
done
exit $code
