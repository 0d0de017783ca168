"""What all settings share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of all settings: immutable, and no key besides those declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
