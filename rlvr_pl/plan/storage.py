"""Bytes of the files that a run leaves, and of what it needs of the host's memory."""

from __future__ import annotations

from dataclasses import dataclass

from rlvr_pl.plan.settings import PlannedRun


@dataclass(frozen=True)
class Storage:
    """In bytes.

    Attributes:
        checkpoint: one of ``last.ckpt``, ``previous.ckpt`` and ``best.ckpt``: what learns, and AdamW's two moments.
        exported: ``best_model/`` and, with an adapter, ``best_adapter/``.
        loading: host memory while the policy is loaded, which is done there in float32.
        saving: host memory while a checkpoint of a GPU is written, a tensor at a time.
        resuming: host memory while a checkpoint is read: all of it, beside the policy.
    """

    checkpoint: int
    exported: int
    loading: int
    saving: int
    resuming: int

    @property
    def disk(self) -> int:
        """The most at a time: three checkpoints, one that is being written, and the exported model."""
        return 4 * self.checkpoint + self.exported


def count_storage(run: PlannedRun) -> Storage:
    """Count what a run with AdamW writes and holds."""
    checkpoint = 3 * run.learning
    adapter = 0 if run.lora is None else run.learning
    loading = run.weights * (2 if run.precision == "bf16-true" else 1)
    learning = [p for p in run.policy.parameters() if p.requires_grad]
    return Storage(
        checkpoint=checkpoint,
        exported=run.weights + adapter,
        loading=loading + adapter,
        saving=max(p.numel() * p.element_size() for p in learning),
        resuming=loading + adapter + checkpoint,
    )
