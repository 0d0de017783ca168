"""A trained run that embeds images, with test-time augmentation: mirrored, larger, smaller.

Embeddings of the augmented images are averaged. Where a mirrored image is another identity, its embedding is
concatenated instead: [e(x), e(mirror x)] / sqrt 2, so that the cosine of two images is the mean of the cosines of their
two sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from whaleid.config import Experiment
from whaleid.data.samplers import MIRROR
from whaleid.training.checkpoint import TrainedRun, load_run
from whaleid.utils.device import default_device
from whaleid.utils.errors import WhaleidError

_STRIDE = 32  # networks halve their input five times


@dataclass(frozen=True)
class Extractor:
    """A trained run ready to embed, with the test-time augmentation of its experiment.

    Attributes
    ----------
    run : TrainedRun
    device : torch.device
    classes : str array, shape (c,), or None
        Identities of the logits.
    columns : int64 tensor, shape (c,)
        Their columns in the head's logits.
    mirror_columns : int64 tensor, shape (c,)
        The same for the mirrored image: others where a mirror is another identity.
    frozen : Extractor or None
        Of an adapter: the frozen network whose features it reads; None where it is given features.
    """

    run: TrainedRun
    device: torch.device
    classes: np.ndarray | None
    columns: Tensor
    mirror_columns: Tensor
    frozen: Extractor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its input, in pixels."""
        return self.run.size if self.frozen is None else self.frozen.size

    @property
    def batch(self) -> int:
        return self.run.experiment.features.batch

    @property
    def half(self) -> bool:
        return self.run.experiment.features.half

    @property
    def side_by_side(self) -> bool:
        """Whether the mirrored image's embedding is concatenated, not averaged."""
        return self.run.experiment.features.mirror and self.run.experiment.image.mirror_identities

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.run.embedder.dim * (2 if self.side_by_side else 1)

    def without_mirror(self) -> Extractor:
        """The same without the mirrored copy of each image in test-time augmentation."""
        features = self.run.experiment.features.model_copy(update={"mirror": False})
        experiment = self.run.experiment.model_copy(update={"features": features})
        frozen = None if self.frozen is None else self.frozen.without_mirror()
        return replace(self, run=replace(self.run, experiment=experiment), frozen=frozen)

    def key(self) -> dict[str, Any]:
        """What determines the features, besides the weights and the images."""
        return {
            "features": self.run.experiment.features.model_dump(mode="json"),
            "mirror_identities": self.run.experiment.image.mirror_identities,
            "precision": self.run.experiment.train.precision,
            "device": self.device.type,
            "classes": None if self.classes is None else self.classes.tolist(),
        }

    def embed(self, images: np.ndarray) -> list[np.ndarray]:
        """Embed images, uint8 (b, h, w, 3): unit embeddings float32 (b, dim), and logits (b, c) if there are any.

        An adapter without its frozen network is given features float32 (b, width) instead.
        """
        if self.frozen is not None:
            stored = np.float16 if self.frozen.half else np.float32  # the form that the adapter was trained on
            images = self.frozen.embed(images)[0].astype(stored).astype(np.float32)
        with torch.inference_mode(), self._precision():
            pixels = torch.from_numpy(images).to(self.device)
            embeddings, logits = self._side(pixels, self.columns)
            if self.run.experiment.features.mirror:
                mirrored, mirrored_logits = self._side(pixels.flip(2), self.mirror_columns)
                logits = [*logits, *mirrored_logits]
                if self.side_by_side:
                    embeddings = torch.cat([_mean_direction(embeddings), _mean_direction(mirrored)], dim=1)[None]
                else:
                    embeddings = torch.cat([embeddings, mirrored])
            outputs = [_mean_direction(embeddings)] + ([torch.stack(logits).mean(0)] if logits else [])
            return [values.cpu().numpy() for values in outputs]

    def _side(self, images: Tensor, columns: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Unit embeddings float32 (s, b, d) at every scale, and each scale's logits (b, c)."""
        embeddings, logits = [], []
        for scaled in self._scaled(images):
            raw = self.run.embedder(scaled).float()
            embeddings.append(functional.normalize(raw, dim=1))
            if self.classes is not None:
                raw_logits = self.run.head.logits(raw)
                assert raw_logits is not None  # checked by load_extractor
                logits.append(raw_logits.float()[:, columns])
        return torch.stack(embeddings), logits

    def _scaled(self, images: Tensor) -> Iterator[Tensor]:
        """The images uint8 (b, h, w, 3) at each of the experiment's scales."""
        width, height = self.size
        for scale in self.run.experiment.features.scales:
            if scale == 1.0:
                yield images
                continue
            size = [max(_STRIDE, round(side * scale / _STRIDE) * _STRIDE) for side in (height, width)]
            pixels = images.permute(0, 3, 1, 2).float()
            scaled = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
            yield scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _precision(self) -> AbstractContextManager[Any]:
        """The precision of training on a GPU; float32 on a CPU."""
        wanted = self.run.experiment.train.precision
        if self.device.type != "cuda" or wanted == "no":
            return nullcontext()
        bf16 = wanted == "bf16" or (wanted == "auto" and torch.cuda.is_bf16_supported(including_emulation=False))
        return torch.autocast("cuda", dtype=torch.bfloat16 if bf16 else torch.float16)


def load_extractor(folder: Path, identities: np.ndarray, on_features: bool = False) -> Extractor:
    """Load a trained run, on the GPU if there is one.

    Parameters
    ----------
    folder : Path
        The run: `runs/<experiment>/<fold>`, beside that of its frozen network where it is an adapter's.
    identities : str array
        Identities of the competition. The head's other classes (mirrors, unknown images trained as identities of their
        own) are left out of the logits.
    on_features : bool
        An adapter is given features instead of images.
    """
    device = default_device()
    run = load_run(folder, device)
    if run.experiment.is_adapter:
        run = _without_views(run)
    if any(scale <= 0 for scale in run.experiment.features.scales):
        raise WhaleidError(f"{folder}: features.scales {run.experiment.features.scales}; each must be above 0")
    columns = np.flatnonzero(np.isin(np.array(run.classes, dtype=str), identities.astype(str)))
    with_logits = run.experiment.features.logits and _has_logits(run, device)
    if with_logits and not len(columns):
        raise WhaleidError(f"{folder}: none of its {len(run.classes)} classes is an identity of these images")
    return Extractor(
        run,
        device,
        np.array(run.classes, dtype=str)[columns] if with_logits else None,
        torch.from_numpy(columns).to(device),
        torch.from_numpy(_mirror_columns(run, columns)).to(device),
        None if on_features else _frozen_of(folder, run.experiment, identities),
    )


def _frozen_of(folder: Path, experiment: Experiment, identities: np.ndarray) -> Extractor | None:
    """The frozen network of an adapter, from the run beside its own."""
    if experiment.adapter_of is None:
        return None
    return load_extractor(folder.parent.parent / experiment.adapter_of / "full", identities)


def _without_views(run: TrainedRun) -> TrainedRun:
    """An adapter's run without test-time augmentation, which its frozen network does."""
    features = run.experiment.features.model_copy(update={"mirror": False, "scales": [1.0]})
    return replace(run, experiment=run.experiment.model_copy(update={"features": features}))


def _has_logits(run: TrainedRun, device: torch.device) -> bool:
    """Whether the head is a classifier; pair and triplet losses are not."""
    with torch.inference_mode():
        return run.head.logits(torch.zeros(1, run.embedder.dim, device=device)) is not None


def _mirror_columns(run: TrainedRun, columns: np.ndarray) -> np.ndarray:
    """Columns of the mirrored image's classes in the head's logits, int64 (c,)."""
    if not run.experiment.image.mirror_identities:
        return columns
    place = {name: number for number, name in enumerate(run.classes)}
    return np.array([place[run.classes[column] + MIRROR] for column in columns], dtype=np.int64)


def _mean_direction(embeddings: Tensor) -> Tensor:
    """Mean over the first axis of (v, b, d), L2-normalised: (b, d); NaN where the mean is zero."""
    mean = embeddings.mean(0)
    return mean / mean.norm(dim=1, keepdim=True)
