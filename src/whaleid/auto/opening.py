"""Open a competition with a recipe that may be left to whaleid: the default one, or `auto`."""

from __future__ import annotations

import sys
from pathlib import Path

from whaleid.auto.write import reasons_of
from whaleid.config import Competition
from whaleid.config.files import AUTO, default_recipe, load_competition
from whaleid.config.settings import Settings, read_settings
from whaleid.pipeline.project import Project
from whaleid.pipeline.project import open_project as open_files
from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError

MINUTES = 60
"""Minutes that `auto` takes where none are given."""


def open_project(
    competition: str,
    recipe: str | None,
    work: Path,
    pairs: list[str] | None = None,
    skip_unreadable: bool = False,
    settings: Settings | None = None,
    minutes: int | None = None,
) -> Project:
    """Open a project; `auto` is chosen, which takes about a minute, where it was not chosen before.

    Parameters
    ----------
    competition : str
        Name of a shipped competition, or path of a YAML file.
    recipe : str or None
        Likewise, or `auto`; None: the competition's default.
    minutes : int, optional
        That `auto` may take from here to the submission; default: `MINUTES`.
    work, pairs, skip_unreadable, settings
        As `pipeline.project.open_project`.

    Raises
    ------
    WhaleidError
        Where minutes are given for another recipe, or where `auto` has no data to look at.
    """
    settings = settings or read_settings()
    name = recipe_file(competition, recipe, work, minutes, settings)
    if (recipe or default_recipe(competition)) == AUTO and not Path(name).is_file():
        contest = load_competition(competition, settings)
        workspace = Workspace(work / contest.name)
        _choose(contest, workspace, Path(name), minutes or MINUTES, skip_unreadable, settings)
    return open_files(competition, name, work, pairs, skip_unreadable, settings)


def recipe_file(competition: str, recipe: str | None, work: Path, minutes: int | None, settings: Settings) -> str:
    """Name or path of a recipe; for `auto`, and where that is the default, the path that it is or will be written to.

    The parameters are those of `open_project`.
    """
    name = recipe or default_recipe(competition)
    if minutes is not None and minutes < 1:
        raise WhaleidError(f"minutes is {minutes}; at least 1 is needed")
    if name != AUTO:
        if minutes is not None:
            raise WhaleidError(f"minutes are for the recipe {AUTO}; {name} takes what its experiments say")
        return name
    contest = load_competition(competition, settings)
    return str((work / contest.name / "recipes" / f"{AUTO}-{minutes or MINUTES}.yaml").absolute())


def _choose(
    competition: Competition, workspace: Workspace, path: Path, minutes: int, skip_unreadable: bool, settings: Settings
) -> None:
    """Look, measure, choose and write; says on standard error what was chosen."""
    from whaleid.auto.choose import choose
    from whaleid.auto.facts import count_keypoints, facts_of, find_machine
    from whaleid.auto.options import options
    from whaleid.auto.throughput import measure
    from whaleid.auto.write import write_recipe
    from whaleid.pipeline.data_stages import build_images_table

    if not (competition.root / competition.train.csv).is_file():
        raise WhaleidError(
            f"recipe {AUTO} looks at the data, and {competition.root / competition.train.csv} is not here: get the "
            "data, or name another recipe, e.g. --recipe gold"
        )
    images = build_images_table(competition, workspace, skip_unreadable)
    keypoints = count_keypoints(images, competition.root, settings.weights)
    facts = facts_of(images, competition.unknown, keypoints, find_machine(settings.weights))
    print(f"recipe {AUTO}: measuring how fast this machine trains", file=sys.stderr, flush=True)
    rates = measure(
        facts.machine, f"auto/{options(facts)[0].networks[0].base}", facts.census.identities, settings.weights
    )
    write_recipe(choose(facts, minutes, rates), path)
    print("\n".join([f"recipe {AUTO}: {path}", *reasons_of(path)]), file=sys.stderr, flush=True)
