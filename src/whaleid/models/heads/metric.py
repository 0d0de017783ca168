"""Any loss and miner of pytorch-metric-learning as a head, by class name, and some that the library lacks.

    head: {name: metric, loss: TripletMarginLoss, arguments: {margin: 0.1}, miner: BatchHardMiner}

Parts of a loss are given by name, or by name and arguments:

    arguments: {distance: CosineSimilarity, reducer: {name: ThresholdReducer, low: 0}}
    loss: CrossBatchMemory, arguments: {loss: ContrastiveLoss, memory_size: 4096}

The number of classes and the embedding's length are filled in where a loss takes them. Losses and miners that the
library lacks are in extra_losses.py and extra_miners.py, corrected versions of the library's in fixed_losses.py.
"""

from __future__ import annotations

import difflib
import inspect
from types import ModuleType
from typing import Any

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn

from whaleid.config import MetricHead
from whaleid.models.heads import extra_losses, extra_miners
from whaleid.models.heads.base import HeadModule
from whaleid.models.heads.fixed_losses import FIXED, REFUSED
from whaleid.utils.errors import WhaleidError

Modules = tuple[ModuleType, ...]

_PARTS: dict[str, Modules] = {
    "loss": (losses, extra_losses),
    "miner": (miners, extra_miners),
    "distance": (distances,),
    "reducer": (reducers,),
    "embedding_regularizer": (regularizers,),
    "weight_regularizer": (regularizers,),
}
"""Arguments that are objects themselves, and the modules of their classes."""

_COMPLAINTS = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError, KeyError)
"""What the library raises for a batch that it cannot use; errors of the device are not among them."""


class MetricLearning(HeadModule):
    """A pytorch-metric-learning loss, with an optional miner that selects its pairs or triplets.

    The loss's own parameters (MarginLoss's beta, proxies) are parameters of this module: optimised and saved.
    """

    unused_parameters = True  # a batch without a pair gives the loss's parameters no gradient

    def __init__(self, settings: MetricHead, dim: int, class_sizes: Tensor):
        super().__init__()
        self.settings = settings
        known = {"num_classes": len(class_sizes), "embedding_size": dim, "descriptors_dim": dim}
        self.loss = _build(_PARTS["loss"], settings.loss, settings.arguments, known, "head.loss")
        self.miner = None
        if settings.miner is not None:
            self.miner = _build(_PARTS["miner"], settings.miner, settings.miner_arguments, {}, "head.miner")
        elif settings.miner_arguments:
            raise WhaleidError("head.miner_arguments is set but head.miner is not: name the miner or drop them")

    def _loss(self, embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        try:
            chosen = None if self.miner is None else self.miner(embeddings, labels)
            loss = self.loss(embeddings, labels, chosen)
        except _COMPLAINTS as error:
            raise WhaleidError(
                f"head.loss {self.settings.loss} cannot use this batch of {len(labels)} images of "
                f"{len(labels.unique())} classes: {_one_line(error)}; "
                "losses on pairs need sampler.name: balanced"
            ) from error
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise WhaleidError(
                f"head.loss {self.settings.loss}: its reducer does not give a single number; choose another"
            )
        return loss

    def _logits(self, embeddings: Tensor) -> Tensor | None:
        """Class scores of the losses that are classifiers (ArcFaceLoss, ...), else None."""
        score = getattr(self.loss, "get_logits", None)
        return None if score is None else score(embeddings)


def _build(modules: Modules, name: str, arguments: dict[str, Any], known: dict[str, Any], key: str) -> nn.Module:
    """Object of the class `name` of these modules.

    known: values of arguments that the class takes and the configuration leaves out. key: named in errors.
    """
    kind = _find(modules, name, key)
    if kind in REFUSED:
        raise WhaleidError(f"{key} {name}: {REFUSED[kind]}")
    accepted = _argument_names(kind)
    for argument in arguments:
        if argument not in accepted:
            guess = difflib.get_close_matches(argument, accepted, n=1)
            hint = f"did you mean '{guess[0]}'?" if guess else f"it takes {', '.join(accepted)}"
            raise WhaleidError(f"{key} {name}: unknown argument '{argument}'; {hint}")
    given = {argument: _part(argument, value, known, key) for argument, value in arguments.items()}
    given = {**{argument: value for argument, value in known.items() if argument in accepted}, **given}
    try:
        return FIXED.get(kind, kind)(**given)
    except Exception as error:  # the library checks its arguments with whatever exception came to hand
        raise WhaleidError(f"{key} {name}: arguments {arguments} do not work: {_one_line(error)}") from error


def _part(argument: str, value: Any, known: dict[str, Any], key: str) -> Any:
    """Value of an argument; a name (or name and arguments) becomes an object where the argument is one."""
    if argument not in _PARTS or not isinstance(value, str | dict):
        return value
    content = {"name": value} if isinstance(value, str) else dict(value)
    name = content.pop("name", None)
    if not isinstance(name, str):
        raise WhaleidError(f"{key}: argument '{argument}' needs a name, for example {{name: LpDistance, p: 2}}")
    return _build(_PARTS[argument], name, content, known, f"{key}.{argument}")


def _find(modules: Modules, name: str, key: str) -> type[nn.Module]:
    kinds = {
        label: kind
        for module in modules
        for label, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and not label.startswith(("Base", "_"))
    }
    if name in kinds:
        return kinds[name]
    folded = {label.lower(): label for label in kinds}
    near = difflib.get_close_matches(name.lower(), folded, n=3)
    hint = f"did you mean {' or '.join(folded[label] for label in near)}?" if near else f"known: {', '.join(kinds)}"
    raise WhaleidError(f"{key} '{name}': neither pytorch-metric-learning nor whaleid has such a class; {hint}")


def _argument_names(kind: type) -> list[str]:
    """Arguments of a class's constructor, and of its ancestors' where `**kwargs` passes them on."""
    names: list[str] = []
    for ancestor in kind.__mro__:
        if ancestor is nn.Module:
            break
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(ancestor.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
