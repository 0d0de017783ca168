"""All that a training step reads and changes: network, optimizer, average, progress."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from whaleid.config import TrainConfig
from whaleid.models.embedder import Embedder
from whaleid.models.heads.base import HeadModule
from whaleid.models.parameters import parameter_groups
from whaleid.training.ema import Ema
from whaleid.training.memory import keep_freed_memory
from whaleid.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from whaleid.training.schedule import Schedule, make_schedule
from whaleid.training.seeds import prefer_determinism, seed_everything
from whaleid.training.state import Progress, State
from whaleid.utils.errors import WhaleidError

_TICK = 10


class LossModule(nn.Module):
    """Embedder and head as one module: its state is the checkpoint's `embedder.*` and `head.*`."""

    def __init__(self, embedder: Embedder, head: HeadModule):
        super().__init__()
        self.embedder = embedder
        self.head = head

    def forward(self, images: Tensor, labels: Tensor, part: int = 0) -> Tensor:
        """Scalar loss of uint8 (b, h, w, 3) images with int64 (b,) labels, by learner `part` of the head."""
        return self.head(self.embedder(images), labels, part)


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
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the epoch with the best score so far (`select: best`), on the CPU."""
    mined: dict[str, Tensor] = field(default_factory=dict)
    """Hard neighbours of every training item, where the sampler asks for them (data/mined_samplers.py)."""
    frozen: bool = False
    """The backbone stands still in the running epoch."""
    gradient_norm: Tensor | None = None
    """Of the last step, before clipping."""

    @property
    def tick(self) -> int:
        """Steps between two looks at the loss: a look makes a GPU wait, and a CPU not."""
        alone = self.accelerator.num_processes == 1
        return 1 if alone and self.accelerator.device.type == "cpu" else _TICK

    def weights(self) -> dict[str, Tensor]:
        """The weights that count: the moving average where there is one."""
        return self.ema.state_dict() if self.ema else self.module.state_dict()

    def averaged(self) -> AbstractContextManager[None]:
        """The module carries `weights()` within the block."""
        return self.ema.applied() if self.ema else nullcontext()


def make_accelerator(precision: str, title: str) -> Accelerator:
    """Accelerator of one run: device and processes as found or as `accelerate launch` says.

    precision: auto is bf16 where the GPU has it natively, fp16 on other CUDA GPUs, none elsewhere.
    """
    if precision == "auto":
        precision = _best_precision()
    AcceleratorState._reset_state()  # it insists on the precision of the run before, in one process
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
    """Settings of torch that a run wants, and its seed, before the first weight is made."""
    prefer_determinism()
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    seed_everything(seed)


def make_session(
    title: str, config: TrainConfig, lengths: list[int], seed: int, accelerator: Accelerator, module: LossModule
) -> Session:
    """A session at the beginning of its run. lengths: batches of each epoch."""
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


def take_state(session: Session) -> State:
    """What the session must know to go on; the tensors are the session's own, not copies."""
    scaler = session.accelerator.scaler
    return State(
        progress=session.progress,
        tensors={
            "model": session.module.state_dict(),
            "optimizer": optimizer_tensors(session.optimizer, session.module),
            "ema": session.ema.values if session.ema else {},
            "best": session.best,
            "mined": session.mined,
        },
        scaler=scaler.state_dict() if scaler is not None else {},
    )


def restore(session: Session, state: State) -> None:
    """Put a session back to where `state` was taken."""
    session.progress = state.progress
    session.module.load_state_dict(state.tensors["model"])
    restore_optimizer(session.optimizer, session.module, state.tensors["optimizer"])
    session.best, session.mined = state.tensors["best"], state.tensors["mined"]
    if session.ema:
        session.ema.load(state.tensors["ema"])
    if session.accelerator.scaler is not None:
        session.accelerator.scaler.load_state_dict(state.scaler)
