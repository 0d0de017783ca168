"""What the metric-learning benchmark compares: metric_learning.yaml as a typed model, methods as experiments."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from whaleid.config import Experiment
from whaleid.config.base import Model, Positive
from whaleid.config.files import load_experiment, read_yaml
from whaleid.utils.errors import WhaleidError

BEFORE = "imagenet"
"""Name of the row of the untrained backbone's pooled features."""

Settings = dict[str, Any]


class Draw(Model):
    """The sample drawn anew, with more whales than the embedded one."""

    identities: Positive
    train_images: Positive


class DataSet(Model):
    """Images whose identities are parted into train and test."""

    competition: str
    image: Settings
    images_seen: Positive
    """Budget of each run."""
    draw: Draw | None = None
    """Draw the sample anew at this size; null: as it is."""
    identities: str | None = None
    """CSV in the competition's root with `image, identity, split` (train or test); null: one half of the
    identities that have two labelled images or more is train, the other test."""


class Method(Model):
    """A head, how batches are drawn for it, and what of schedule and network is its own."""

    head: Settings
    sampler: Settings = Field(default_factory=dict)
    train: Settings = Field(default_factory=dict)
    model: Settings = Field(default_factory=dict)


class Grid(Model):
    """Methods that differ in a few settings of one head, whose `learner` is the head of the baseline."""

    name: str
    head: Settings
    sampler: Settings = Field(default_factory=dict)
    """What differs from the baseline's."""
    lists: dict[str, Annotated[list[Any], Field(min_length=1)]]
    """Setting of the head -> its values; every choice is a method."""


class Quick(Model):
    """The small bench of --quick."""

    seeds: Annotated[list[int], Field(min_length=1)]
    images_seen: dict[str, Positive]
    methods: list[str]


class Large(Model):
    """What a machine with a GPU does instead."""

    image: dict[str, Settings]
    images_seen: dict[str, Positive]


class Bench(Model):
    """The whole YAML."""

    seeds: Annotated[list[int], Field(min_length=1)]
    data: Annotated[dict[str, DataSet], Field(min_length=1)]
    settings: dict[str, Settings]
    methods: dict[str, Method]
    baseline: str
    """The method whose head is the learner of the grids' heads, and with which they are compared."""
    grids: list[Grid]
    quick: Quick
    gpu: Large

    @model_validator(mode="after")
    def _consistent(self) -> Bench:
        if self.baseline not in self.methods:
            raise ValueError(f"baseline '{self.baseline}' is not among the methods")
        if BEFORE in self.methods:
            raise ValueError(f"methods.{BEFORE}: that name is the untrained backbone's; choose another")
        each = {"quick.images_seen": self.quick.images_seen, "gpu.images_seen": self.gpu.images_seen}
        for key, given in {**each, "gpu.image": self.gpu.image}.items():
            if set(given) != set(self.data):
                raise ValueError(f"{key} needs the data sets {', '.join(self.data)} and no others")
        return self

    def all_methods(self) -> dict[str, Method]:
        """Name -> method, in the order of the YAML, the grids' last."""
        varied = [grid_methods(grid, self.methods[self.baseline]) for grid in self.grids]
        return dict(itertools.chain.from_iterable(each.items() for each in (self.methods, *varied)))


def load_bench(path: Path, quick: bool, gpu: bool) -> Bench:
    """The YAML, checked; with `quick` or `gpu`, budgets, and seeds or sizes, are those of that section."""
    try:
        bench = Bench.model_validate(read_yaml(path))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise WhaleidError(f"{path}: {place}: {problem['msg'].removeprefix('Value error, ')}") from error
    if quick:
        data = _changed(bench.data, images_seen=bench.quick.images_seen)
        return bench.model_copy(update={"seeds": bench.quick.seeds, "data": data})
    if gpu:
        data = _changed(bench.data, images_seen=bench.gpu.images_seen, image=bench.gpu.image)
        return bench.model_copy(update={"data": data})
    return bench


def _changed(data: dict[str, DataSet], **fields: dict[str, Any]) -> dict[str, DataSet]:
    """The data sets with other values of some fields; fields: field -> data set -> value."""
    return {
        name: item.model_copy(update={field: values[name] for field, values in fields.items()})
        for name, item in data.items()
    }


def grid_methods(grid: Grid, baseline: Method) -> dict[str, Method]:
    """Every choice from the grid's lists as a method named after it."""
    methods = {}
    for values in itertools.product(*grid.lists.values()):
        choice = dict(zip(grid.lists, values, strict=True))
        name = "-".join([grid.name, *map(str, values)])
        head = {**grid.head, **choice, "learner": baseline.head}
        methods[name] = baseline.model_copy(update={"head": head, "sampler": {**baseline.sampler, **grid.sampler}})
    return methods


def chosen(asked: list[str], known: list[str], what: str) -> list[str]:
    """The known names that one of `asked` names; `*` stands for any part of a name."""
    for pattern in asked:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise WhaleidError(f"{what} '{pattern}': not in the YAML, which has {', '.join(known)}")
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in asked)]


def make_experiment(bench: Bench, data: str, name: str, seed: int) -> Experiment:
    """The experiment of one method on one data set; WhaleidError where its settings do not hold."""
    method, table = bench.all_methods()[name], bench.data[data]
    settings: dict[str, Any] = {}
    layers = [
        bench.settings,
        {"image": table.image, "sampler": method.sampler, "train": method.train, "model": method.model},
    ]
    for group, values in itertools.chain.from_iterable(layer.items() for layer in layers):
        settings |= {f"{group}.{key}": value for key, value in values.items()}
    settings |= {"train.images_seen": table.images_seen, "train.seed": seed, "head": method.head}
    try:
        experiment = load_experiment("default", settings)
    except WhaleidError as error:
        problem = str(error).rpartition("default.yaml: ")[2]  # the mistake stands in the bench's YAML, not there
        raise WhaleidError(f"method {name} on {data}: {problem}") from error
    return experiment.model_copy(update={"name": name})
