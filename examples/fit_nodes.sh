#!/bin/bash
# One fit over several nodes without a scheduler: the same command on each of them, with the node's own number.
#
#   export NODES=2 GPUS=4 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500
#   NODE_RANK=0 examples/fit_nodes.sh --config configs/gspo.yaml --run_dir /shared/gspo    # on 10.0.0.1
#   NODE_RANK=1 examples/fit_nodes.sh --config configs/gspo.yaml --run_dir /shared/gspo    # on the other
#
# --run_dir lies on a file system that every node sees; --ckpt_path last is added on all of them, to go on. Ctrl-C or
# SIGTERM on one of them is enough: all finish the rollout, and the first one saves it. torchrun would kill after 30 s
# what takes longer, hence its timeout.
set -euo pipefail

torchrun=("${PYTHON:-.venv/bin/python}" -m torch.distributed.run)
exec "${torchrun[@]}" --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$GPUS" \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" --shutdown_timeout 900 \
    -m rlvr_pl fit "$@" --trainer.strategy ddp --trainer.num_nodes "$NODES" --trainer.devices "$GPUS"
