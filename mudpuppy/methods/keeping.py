"""Mixed into every trainer, or called by it: what makes checkpoints complete and resuming exact."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import TrainerCallback

from mudpuppy.checkpoints import Identity, write_manifest
from mudpuppy.errors import OutputError
from mudpuppy.leftovers import CHECKPOINT_MARK
from mudpuppy.memory.offload import OffloadedAdamW, StreamedAdamW
from mudpuppy.memory.streaming import stream_of
from mudpuppy.quant.fp8_history import load_histories, save_histories
from mudpuppy.refusals import is_out_of_memory


@contextmanager
def _refusing(checkpoint: str | None) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is loaded into a mistake that a person can mend.

    Raises:
        OutputError: a file of the checkpoint does not hold what it should.
    """
    try:
        yield
    except Exception as error:  # unpickling foreign bytes may raise anything
        if checkpoint is None or is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise OutputError(
            f"{Path(checkpoint).name} cannot be resumed from: {type(error).__name__} {reason}",
            hint=f"go on from an older one by removing it: rm -r {shlex.quote(checkpoint)}",
        ) from error


class EngineTrainer:
    """Mixed into a trainer, before its own class."""

    args: Any
    accelerator: Any
    control: Any
    model: Any
    state: Any
    optimizer: Any
    was_over: bool = False
    """Whether the checkpoint that is resumed from was the run's last."""
    offload: bool = False
    """Whether the optimizer lives on the host."""

    def create_accelerator_and_postprocess(self) -> None:
        """Make fp16 real on a CPU too.

        accelerate gives the CPU neither autocast nor a gradient scaler for fp16, and computes in
        fp32 without a word; here both are switched on, as they are on a GPU.
        """
        super().create_accelerator_and_postprocess()  # type: ignore[misc]  # the trainer's own
        if self.args.fp16 and self.accelerator.device.type == "cpu":
            self.accelerator.native_amp = True
            self.accelerator.scaler = torch.amp.GradScaler("cpu")
        if self.args.fsdp_plugin_args is not None and self.accelerator.device.type == "cpu":
            self._shard_on_cpu()

    def _shard_on_cpu(self) -> None:
        """Make FSDP real on a CPU too, where accelerate would train with DDP without a word."""
        plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
        state = self.accelerator.state
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = plugin
        self.is_fsdp_enabled = True

    def create_optimizer(self, model: Any = None) -> Any:
        """Move the optimizer to the host, where that was asked for or the layers are there."""
        made: Any = super().create_optimizer(model)  # type: ignore[misc]  # the trainer's own
        if isinstance(made, OffloadedAdamW):
            return made
        stream = stream_of(self.model)
        if stream is not None:
            made = StreamedAdamW(made, stream)
            if not self.args.max_grad_norm and not self.args.fp16:
                made.step_early_when(lambda: bool(self.accelerator.sync_gradients))
        elif self.offload:
            made = OffloadedAdamW(made)
        self.optimizer = made
        return made

    def _save_checkpoint(self, *words: Any, **named: Any) -> None:
        """Mark the folder as ours before anything else is in it."""
        if self.args.process_index == 0:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CHECKPOINT_MARK).touch()
        super()._save_checkpoint(*words, **named)  # type: ignore[misc]  # the trainer's own

    def _load_from_checkpoint(self, checkpoint: str, *words: Any, **named: Any) -> None:
        """Load the weights, and what fp8 scales follow."""
        with _refusing(checkpoint):
            super()._load_from_checkpoint(checkpoint, *words, **named)  # type: ignore[misc]
            load_histories(self.model, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load optimizer and schedule."""
        with _refusing(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load the gradient scaler."""
        with _refusing(checkpoint):
            super()._load_scaler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load the random state."""
        with _refusing(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: TRL would leave one in the output folder with every checkpoint."""

    def _run_epoch(self, **words: Any) -> None:
        """Take no step more where the run was over before it was resumed.

        The trainer looks at its last step only after the next one: resumed from a checkpoint of the
        last step in the middle of an epoch, or of an early stop, it would take one too many.
        """
        if self.was_over:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**words)  # type: ignore[misc]  # the trainer's own


class CheckpointKeeper(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Asks for checkpoints, and completes each with its manifest."""

    def __init__(self, identity: Identity, every: int | None) -> None:
        self._identity = identity
        self._every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the best checkpoint again: its path was written down when the folder had another."""
        del control
        if state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint at its turn, whatever evaluation asks for."""
        del args
        if self._every is not None and state.global_step % self._every == 0:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Write the manifest, once every process has written its files."""
        del control
        if args.world_size > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            # The trainer's arguments as a pickle: nobody reads it, and nobody should.
            (folder / "training_args.bin").unlink(missing_ok=True)
            save_histories(model, folder)
            write_manifest(folder, state.global_step, self._identity)
