"""The training loop: batches in, updated weights out. Its caller logs and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from whaleid.data.samplers import EpochPlan
from whaleid.models.backbone import freeze_batchnorm, freeze_stages, set_backbone_trainable
from whaleid.training.optimizer import set_rates
from whaleid.training.seeds import mix, seed_everything
from whaleid.training.session import LossModule, Session
from whaleid.utils.errors import WhaleidError

Batches = Iterator[tuple[Tensor, Tensor]]
"""Images uint8 (b, h, w, 3) and labels int64 (b,)."""


def train_epoch(session: Session, plan: EpochPlan, batches: Batches, after_tick: Callable[[int], None]) -> None:
    """Train the rest of the running epoch.

    Parameters
    ----------
    session : Session
    plan : EpochPlan
        Of the full epoch.
    batches : iterator
        Those from `progress.batch` on.
    after_tick : callable
        Called every few steps and after the last, with the number of steps since the last call; their losses are
        finite.
    """
    progress = session.progress
    groups = list(zip(plan.sizes, plan.parts, strict=True))
    set_mode(session)
    model = across_processes(session.module, session.accelerator)
    losses: list[Tensor] = []
    started = time.perf_counter()
    for start in range(progress.batch, len(groups), session.config.accumulate):
        group = groups[start : start + session.config.accumulate]
        losses.append(take_step(session, model, batches, group))
        progress.step += 1
        progress.batch += len(group)
        progress.images += sum(size for size, _ in group)
        if progress.step % session.tick == 0 or progress.batch == len(groups):
            settle(session, losses)
            now = time.perf_counter()
            progress.seconds += now - started
            started = now
            after_tick(len(losses))
            losses = []


def set_mode(session: Session) -> None:
    """Training mode, with the backbone frozen where the settings say so."""
    embedder = session.module.embedder
    if session.config.freeze.batchnorm:
        freeze_batchnorm(embedder.backbone)
    if session.config.freeze.stages:
        freeze_stages(embedder.backbone, session.config.freeze.stages)
    if embedder.backbone.trainable == session.frozen:
        set_backbone_trainable(embedder.backbone, not session.frozen)
    session.module.train()


def take_step(session: Session, model: nn.Module, batches: Batches, group: list[tuple[int, int]]) -> Tensor:
    """One update of the weights from `len(group)` batches; returns their mean loss, detached.

    group: size of each batch, and the learner of the head that it is for. A batch is weighted by its images, so that
    the gradient is that of one large batch (where neither loss nor network couples the images of a batch).
    """
    accelerator, config, step = session.accelerator, session.config, session.progress.step
    set_rates(session.optimizer, session.schedule.factor(step))
    session.optimizer.zero_grad(set_to_none=True)  # here, not at the end: the forward pass reuses the memory
    losses, total = [], sum(size for size, _ in group)
    for place, (size, learner) in enumerate(group):
        images, labels = next(batches)
        seed_everything(mix(session.seed, step, place, accelerator.process_index))
        last = place == len(group) - 1
        with nullcontext() if last else unsynchronised(model):
            with accelerator.autocast():
                loss = model(
                    images.to(accelerator.device, non_blocking=True),
                    labels.to(accelerator.device, non_blocking=True),
                    learner,
                )
            share = loss * (size / total) if len(group) > 1 else loss
            accelerator.backward(share)
        losses.append(share.detach())
    limit = config.clip if config.clip > 0 else math.inf
    session.gradient_norm = accelerator.clip_grad_norm_(session.module.parameters(), limit)
    session.optimizer.step()
    if session.ema:
        session.ema.update(session.module, step)
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def settle(session: Session, losses: list[Tensor]) -> None:
    """Add up the losses of the last steps; raise WhaleidError for one that is not finite."""
    progress = session.progress
    stacked = torch.stack(losses).float()
    if session.accelerator.num_processes > 1:  # all processes must come to the same conclusion
        stacked = cast(Tensor, session.accelerator.reduce(stacked, reduction="mean"))
    for place, value in enumerate(stacked.tolist()):
        if not math.isfinite(value):
            raise not_finite(session, f"loss is {value}", progress.step - len(losses) + place + 1)
        progress.epoch_loss += value
        progress.window_loss += value
    progress.epoch_steps += len(losses)
    progress.window_steps += len(losses)


def require_finite_weights(session: Session) -> None:
    """Raise WhaleidError where a step has broken the weights, though its loss was still finite."""
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in session.module.parameters()])
    if not bool(finite.all()):
        raise not_finite(session, "weights are no longer finite", session.progress.step)


def not_finite(session: Session, what: str, step: int) -> WhaleidError:
    """The error of a run that has diverged; `step` counts from 1."""
    config = session.config
    clip = f"a smaller train.clip (now {config.clip:g})" if config.clip > 0 else "train.clip=5 (now off)"
    precision = session.accelerator.mixed_precision
    bf16 = "train.precision=bf16 or no (now fp16), " if precision == "fp16" else ""
    return WhaleidError(
        f"{session.title}: the {what} at epoch {session.progress.epoch + 1}, step {step}; "
        f"the last good state is kept; try a lower train.lr (now {config.lr:g}), {bf16}{clip} "
        f"or a longer train.warmup (now {config.warmup:g})"
    )


def across_processes(module: LossModule, accelerator: Accelerator) -> nn.Module:
    """The module itself, or with several processes one that averages gradients over them.

    Made anew for each epoch, since it must know which parameters are frozen.
    """
    if accelerator.num_processes == 1:
        return module
    device = accelerator.device
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=module.head.unused_parameters,
    )


def unsynchronised(model: nn.Module):
    """Context without averaging of gradients over processes: for all but the last batch of a step."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
