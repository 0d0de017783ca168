"""All that a training step reads and changes: network, optimizer, average, progress."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn

from whaleid.config import TrainConfig
from whaleid.models.embedder import Embedder
from whaleid.models.heads.base import HeadModule
from whaleid.training.ema import Ema
from whaleid.training.optimizer import build_optimizer, parameter_groups
from whaleid.training.schedule import Schedule, make_schedule
from whaleid.training.seeds import prefer_determinism, seed_everything
from whaleid.utils.errors import WhaleidError

_TICK = 10


class LossModule(nn.Module):
    """Embedder and head as one module: its state is the checkpoint's `embedder.*` and `head.*`.

    size: width and height of the network's input.
    """

    def __init__(self, embedder: Embedder, head: HeadModule, size: tuple[int, int]):
        super().__init__()
        self.embedder = embedder
        self.head = head
        self.size = size

    def forward(self, images: Tensor, labels: Tensor, learner: int = 0) -> Tensor:
        """Loss, a scalar, of uint8 (b, h, w, 3) images with int64 (b,) labels, by one learner of the head."""
        images, labels = self.head.question(images, labels, self.size)
        return self.head(self.embedder(images), labels, learner)


@dataclass
class Progress:
    """How far a run is, between two steps; all counts are of finished work."""

    epoch: int = 0
    """Epochs finished: the number of the running one, counted from 0."""
    batch: int = 0
    """Batches of the running epoch's plan that were used."""
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    epoch_loss: float = 0.0
    """Sum over the running epoch's steps; `epoch_steps` of them."""
    epoch_steps: int = 0
    window_loss: float = 0.0
    """Sum since the last line of the log; `window_steps` of them."""
    window_steps: int = 0
    last_loss: float | None = None
    """Mean loss of the last finished epoch."""
    log_length: int = 0
    """Bytes of log.jsonl that belong to this state."""


@dataclass
class Session:
    """One run in progress."""

    title: str
    """`experiment ..., fold ...`, for messages."""
    config: TrainConfig
    schedule: Schedule
    seed: int
    accelerator: Accelerator
    module: LossModule
    optimizer: torch.optim.Optimizer
    """As accelerate wraps it: with fp16 its step unscales, and skips where a gradient overflowed."""
    ema: Ema | None
    progress: Progress = field(default_factory=Progress)
    planner_state: dict[str, Tensor] = field(default_factory=dict)
    """What the planner keeps between epochs: hard neighbours, pseudo-labels."""
    frozen: bool = False
    """Whether the backbone is frozen in the running epoch."""
    gradient_norm: Tensor | None = None
    """Of the last step, before clipping."""

    @property
    def tick(self) -> int:
        """Steps between two reads of the loss, which make a GPU wait but not a CPU."""
        alone = self.accelerator.num_processes == 1
        return 1 if alone and self.accelerator.device.type == "cpu" else _TICK

    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: the moving average where there is one."""
        return (self.ema.module if self.ema else self.module).state_dict()

    def restart_average(self, names: list[str]) -> None:
        """Start the averages of parameters anew that something other than a step has changed."""
        if self.ema:
            self.ema.restart(self.module, names)


def from_main_process(accelerator: Accelerator, values: np.ndarray) -> np.ndarray:
    """The first process's array, in every process; the shapes are equal."""
    return cast(Tensor, broadcast(torch.from_numpy(values).to(accelerator.device), from_process=0)).cpu().numpy()


def make_accelerator(precision: str, title: str) -> Accelerator:
    """Accelerator of one run, on the device and processes that are there or that `accelerate launch` sets.

    precision: `auto` is bf16 where the GPU has it natively, fp16 on other CUDA GPUs, none elsewhere. Raises
    WhaleidError for a precision that does not work on the device.
    """
    if precision == "auto":
        precision = _best_precision()
    AcceleratorState._reset_state()  # in one process it would keep the precision of the run before
    try:
        accelerator = Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise WhaleidError(f"{title}: train.precision={precision} does not work here: {error}") from error
    if precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would train in float32, silently
        raise WhaleidError(f"{title}: train.precision=fp16 needs a GPU; use auto, no or bf16")
    return accelerator


def _best_precision() -> str:
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def prepare_machine(accelerator: Accelerator, seed: int) -> None:
    """Set torch's determinism, the allocator and the seed, before the first weight is made."""
    prefer_determinism()
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    seed_everything(seed)


def make_session(
    title: str, config: TrainConfig, lengths: list[int], seed: int, accelerator: Accelerator, module: LossModule
) -> Session:
    """A session at the start of its run. lengths: batches of each epoch."""
    module = module.to(accelerator.device)
    # Up to a tenth faster on a CPU, more on a GPU in half precision; the pixels come in this order anyway.
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(module.embedder, module.head, config.lr, config.backbone_lr, config.weight_decay)
    return Session(
        title=title,
        config=config,
        schedule=make_schedule(config, lengths),
        seed=seed,
        accelerator=accelerator,
        module=module,
        optimizer=accelerator.prepare(build_optimizer(groups, config)),
        ema=Ema(module, config.ema) if config.ema > 0 else None,
    )


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to return freed blocks under 1 GiB to the system; False where it is not glibc.

    A step frees its activations and the next one allocates the same again. Returned in between, they come back as new
    pages that the kernel has to clear first: 15 % of a step of tf_efficientnet_lite0 at 128 x 64.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of glibc's <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))
