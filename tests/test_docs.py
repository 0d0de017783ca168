"""The documentation: links, commands, Python and YAML blocks, and figures that stand in two places."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from whaleid.cli.main import app
from whaleid.config import Competition, Experiment, Recipe
from whaleid.config.files import load_experiment, load_recipe
from whaleid.config.heads import Head

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "submissions" / "README.md"])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
README = (ROOT / "README.md").read_text()
LARGEST_IMAGE = 150_000


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for found, content in BLOCK.findall(page.read_text()):
            if found == language:
                yield page_name(page), content


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def command_words() -> dict[str, set[str]]:
    """`whaleid` commands, and the commands of each group."""
    root = typer.main.get_command(app)
    return {name: set(getattr(command, "commands", {})) for name, command in root.commands.items()}  # type: ignore


# ------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), f"{page_name(page)}: {target}"
        assert not anchor or anchor in anchors(path), f"{page_name(page)}: no heading for {target}"


def test_the_navigation_lists_every_page() -> None:
    text = re.sub(r"!!python/name:\S+", "x", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w-]+\.md", str(yaml.safe_load(text)["nav"])))
    notebooks = {f"{path.stem}.md" for path in ROOT.glob("notebooks/*.ipynb")}
    assert listed == {path.name for path in ROOT.glob("docs/*.md")} | notebooks


def test_files_named_in_pages_exist() -> None:
    """Paths of the repository and, in docs/design.md and docs/extending.md, of the package."""
    for page in PAGES:
        if page.name in ("CHANGELOG.md", "tried.md"):
            continue
        for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md))`", page.read_text()):
            places = (ROOT, ROOT / "src" / "whaleid", ROOT / "configs" / "experiments")
            assert any((place / path).exists() for place in places), f"{page_name(page)}: {path}"


# ---------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_exist(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "tried.md"):  # they name what is gone
        return
    commands = command_words()
    content = page.read_text()
    text = "\n".join([*re.findall(r"`([^`\n]+)`", content), *(block for _, block in BLOCK.findall(content))])
    for target in re.findall(r"(?:^|&& )make ([a-z][a-z-]*)", text, re.MULTILINE):
        assert target in TARGETS, f"{page_name(page)}: make {target}"
    for command, second in re.findall(r"(?:^|&& |/)whaleid ([a-z][a-z-]*)(?: ([a-z]+))?", text, re.MULTILINE):
        assert command in commands, f"{page_name(page)}: whaleid {command}"
        assert not commands[command] or not second or second in commands[command], f"{page_name(page)}: {second}"


@pytest.mark.parametrize(("page", "block"), list(blocks("bash")))
def test_options_of_commands_exist(page: str, block: str) -> None:
    root = typer.main.get_command(app)
    for line in block.splitlines():
        words = line.split("#")[0].split()
        if not words or not words[0].endswith("whaleid"):
            continue
        command, rest = root, words[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]  # type: ignore
        known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        for word in rest:
            assert not word.startswith("-") or word in known, f"{page}: {line}"


# ------------------------------------------------------------------------------------------------- code blocks


@pytest.mark.parametrize(("page", "block"), list(blocks("python")))
def test_python_blocks_compile(page: str, block: str) -> None:
    compile(block, page, "exec")


@pytest.mark.parametrize(("page", "block"), list(blocks("yaml")))
def test_yaml_blocks_are_valid_settings(page: str, block: str, tmp_path: Path) -> None:
    content = yaml.safe_load(block)
    path = tmp_path / "block.yaml"
    path.write_text(block)
    if "train" in content and "root" in content:
        Competition.model_validate(content)
    elif "experiments" in content or "combine" in content:
        recipe, experiments = load_recipe(str(path))
        assert isinstance(recipe, Recipe) and experiments
    elif "extends" in content or "adapter_of" in content:
        assert isinstance(load_experiment(str(path)), Experiment)
    else:
        assert content.keys() == {"head"}, f"{page}: neither a competition, recipe, experiment nor head"
        TypeAdapter(Head).validate_python(content["head"])


# -------------------------------------------------------------------------------------------------- the README


def test_the_readme_is_short_with_small_images() -> None:
    assert README.count("\n") <= 160
    images = [ROOT / name for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)]
    assert len(images) == 2 and all(image.stat().st_size < LARGEST_IMAGE for image in images)


def test_scores_of_the_readme_are_those_of_the_results_page() -> None:
    results = (ROOT / "docs" / "results.md").read_text()
    table = README[README.index("## Results") : README.index("## How it works")]
    for score in re.findall(r"\d\.\d{3}(?: ± \d\.\d{3})?|\d\d\.\d+ %", table):
        assert score in results, score


def test_no_page_has_an_absolute_path() -> None:
    for page in PAGES:
        assert not re.search(r"(?:^|[\s`(])/(?:home|work|tmp|root|Users)/", page.read_text()), page_name(page)
