"""What is done to the last ranking: rules that look at all queries at once, or beside the picture."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from whaleid.config.base import Model, Positive

_Share = Annotated[float, Field(gt=0, le=1)]


class ClaimsConfig(Model):
    """An identity that more queries claim than it should have loses in all of them: short grids, chosen out of fold."""

    weights: Annotated[list[_Share], Field(min_length=1)] = [0.1, 0.2, 0.4, 0.8]
    """Its odds are multiplied by (claims / expected) to the power of -weight; 1 with many rounds brings every identity
    to just what is expected of it."""
    rounds: Annotated[list[Positive], Field(min_length=1)] = [1, 10]
    """1: a penalty. More: claims are counted again under the penalties, and those found again (Sinkhorn's steps)."""
    expected: Annotated[list[Literal["gallery", "even"]], Field(min_length=1)] = ["gallery", "even"]
    """Of an identity's claims: as its share of the gallery's images, or the same for all identities."""


class AfterConfig(Model):
    """Post-processing of the last ranking, in this order: `same`, `duplicates`, `claims`.

    Each has a rung of its own, and is off in a fold where the other folds say that it does not help.
    """

    same: list[str] = []
    """Columns of images.parquet (`extra` in the competition's YAML, of train and test; width and height too):
    candidates that the gallery never shows with the query's value fall back."""
    duplicates: bool = True
    """Queries that are copies of one photograph share their answer."""
    claims: ClaimsConfig | None = ClaimsConfig()
    """`{}` takes it as it is set above, null leaves it out."""
    errors: Annotated[float, Field(ge=0)] = 1.0
    """A step is used where its gain is above this many of the gain's standard errors; 0: where there is a gain."""

    @field_validator("same")
    @classmethod
    def _distinct(cls, columns: list[str]) -> list[str]:
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise ValueError(f"column listed twice: {', '.join(twice)}")
        return columns
