"""Keys of older YAML files: what they are called now, or why they are gone.

A table for each kind of file. To rename a key, add `"old.dotted.key": "new.dotted.key"`. To remove one, add
`"old.dotted.key": "a sentence that says what to do"`. To remove one value of a key, add `"key=value": "a sentence"`.
Keys below `head` hold for every head, also inside `divide` and `sum`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

COMPETITION: dict[str, str] = {"mend": "rename_values"}

EXPERIMENT: dict[str, str] = {
    "head.freeze": "part of head.preset; leave it out",
    "head.growth": "part of head.preset: cvpr2019 has K clusters at once, tpami2021 cuts them in two; leave it out",
    "head.joint": "part of head.preset; leave it out",
    "head.orthogonality": "it is always 0.01; leave it out",
    "head.smallest": "it is always a quarter of the mean cluster; leave it out",
    "head.space": "pooled features are always clustered; leave it out",
    "head.subspace": "part of head.preset: cvpr2019 has slices, tpami2021 learned masks; leave it out",
    "head.warmup": "part of head.preset; leave it out",
    "head.sobel": "pretraining always reads colours; leave it out",
    "model.pool=sum": "write avg, which differs by a constant factor only",
    "train.select": "a run always keeps its last weights; leave it out",
}

RECIPE: dict[str, str] = {
    "combine.after": "post-processing gained nothing; leave it out",
    "combine.blend": "the blend has no settings; leave it out",
    "combine.classifier.hidden": "the classifier has no hidden layer; leave it out",
    "combine.classifier.dropout": "the classifier has no hidden layer; leave it out",
    "combine.classifier.batch": "it is always 256; leave it out",
    "combine.classifier.mixup": "it is always 0.2; leave it out",
    "combine.classifier.scale": "it is always 20; leave it out",
    "combine.classifier.smoothing": "it is always 0.1; leave it out",
    "combine.classifier.weight_decay": "it is always 0.01; leave it out",
    "combine.unknown": "thresholds are always fitted, at the competition's unknown_share; leave it out",
    "combine.knn.score": "an identity always has the score of its most similar image; leave it out",
    "combine.knn.top": "an identity always has the score of its most similar image; leave it out",
    "combine.stack.taught": "combine.stack.training_candidates",
    "combine.stack.rounds": "combine.stack.num_iterations",
    "combine.stack.rate": "combine.stack.learning_rate",
    "combine.stack.leaves": "combine.stack.num_leaves",
    "combine.stack.least": "combine.stack.min_data_in_leaf",
    "combine.stack.ridge": "combine.stack.lambda_l2",
    "combine.stack.features": "combine.stack.feature_fraction",
    "combine.stack.queries": "combine.stack.bagging_fraction",
    "combine.stack.threads": "combine.stack.num_threads",
    "combine.stack.monotone": "the stack is always monotone in scores and places; leave it out",
    "combine.stack.start": "the trees always correct the blend's scores; leave it out",
    "combine.stack.embeddings": "the stack always uses the embedding features; leave it out",
    "combine.stack.unknown": "the unknown identity is always ranked by its own score; leave it out",
    "combine.local": "combine.local_matching",
    "combine.rerank.diffusion.iterations": "diffusion stops by itself; leave it out",
    "combine.rerank.diffusion.tolerance": "diffusion stops by itself; leave it out",
    "combine.rerank.labels.balance": "it is always 0.5; leave it out",
    "combine.rerank.reciprocal.own": "combine.rerank.reciprocal.lambda_value",
    "combine.local_matching.learned.others": "combine.local_matching.learned.false_per_true",
    "combine.local_matching.learned.pairs.others": "combine.local_matching.learned.pairs.false_per_true",
    "combine.local_matching.learned.trees": "combine.local_matching.learned.num_iterations",
    "combine.local_matching.learned.rate": "combine.local_matching.learned.learning_rate",
    "combine.local_matching.learned.leaves": "combine.local_matching.learned.num_leaves",
    "combine.local_matching.learned.least": "combine.local_matching.learned.min_data_in_leaf",
    "combine.local_matching.learned.pairs.trees": "combine.local_matching.learned.pairs.num_iterations",
    "combine.local_matching.learned.pairs.rate": "combine.local_matching.learned.pairs.learning_rate",
    "combine.local_matching.learned.pairs.leaves": "combine.local_matching.learned.pairs.num_leaves",
    "combine.local_matching.learned.pairs.least": "combine.local_matching.learned.pairs.min_data_in_leaf",
}


def old_key_messages(content: dict[str, Any], table: dict[str, str]) -> Iterator[str]:
    """One message for each key (or value) of `content` that `table` lists.

    Parameters
    ----------
    content : dict
        A YAML file or overrides, nested or with dotted keys.
    table : dict
        COMPETITION, EXPERIMENT or RECIPE.

    Yields
    ------
    str
        What is old and what to write instead, without the name of the file.
    """
    for key, value in _flat(content):
        for old in (key, f"{key}={_as_yaml(value)}"):
            if old in table:
                yield _message(old, table[old])


def _message(old: str, new: str) -> str:
    if " " in new:
        return f"'{old}' was removed: {new}"
    return f"'{old}' was renamed: write '{new}'"


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, groups before their members; heads inside of heads appear as `head`."""
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        for inner in (".parts.head", ".learner"):
            dotted = dotted.removesuffix(inner) if dotted.endswith(f"head{inner}") else dotted
        yield dotted, value
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _flat(item, f"{dotted}.")


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
