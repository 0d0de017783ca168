"""whaleid: which individual is this? From a competition's photographs to ranked guesses.

The command line (`whaleid --help`) runs everything; these functions do the same from Python:

    import whaleid

    project = whaleid.open_project("turtles.yaml", minutes=30, overrides={"combine.stack": None})
    whaleid.train(project)  # every experiment on every fold; what is up to date is skipped
    images, vectors = whaleid.embed(project, project.experiments[0].name, fold=0)
    print(images.shape, vectors.shape)  # one row of both for each image
    ladder = whaleid.evaluate(project)  # one row for each ranker
    print(ladder[["ranker", "map", "low", "high"]])  # MAP@5 out of fold, with its 95 % interval
    candidates = whaleid.rank(project)  # one row for each candidate of each test image
    print(candidates[candidates["rank"] == 1].head())
    path = whaleid.write_submission(project)
    print(path, whaleid.score(path, "turtles/solution.csv").map)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whaleid.api import embed, evaluate, open_project, rank, run, score, train, write_submission

__version__ = "0.2.0"
__all__ = ["embed", "evaluate", "open_project", "rank", "run", "score", "train", "write_submission"]


def __getattr__(name: str) -> Any:
    """The functions of the API, imported when they are first used."""
    if name not in __all__:
        raise AttributeError(f"module 'whaleid' has no attribute '{name}'")
    from whaleid import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
