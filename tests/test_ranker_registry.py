"""A ranker is one class and one line in the registry: ladder, blend, files and ablation know it then."""

from __future__ import annotations

import json

import numpy as np
from ladder_world import make_world, recipe, write_sources

from whaleid.ensemble.ablation import ablate
from whaleid.ensemble.ladder import combine
from whaleid.ensemble.rankers.base import Ranker, Without, rank_parts
from whaleid.ensemble.rankers.registry import RANKERS, ranker_of
from whaleid.ensemble.rankings import Ranking


class FrequencyRanker(Ranker):
    """Every query has the identities with the most gallery images."""

    kind, level, blend = "frequency", "joint", "member"

    def rank(self, context):
        classes = len(context.protocol.classes)

        def rank(query_set):
            count = np.bincount(query_set.gallery_codes, minlength=classes)
            codes = np.argsort(-count, kind="stable")[: context.keep]
            scores = np.log1p(count[codes]).astype(np.float32)
            shape = len(query_set.rows), 1
            return np.tile(codes, shape), np.tile(scores, shape)

        lists, test = rank_parts(context, lambda part: rank)
        return [Ranking("by frequency", self.kind, lists, test, False)]

    def ablations(self, config):
        yield Without("frequency of identities", config, (self.kind,))


def test_a_new_ranker_is_in_the_ladder_and_the_ablation(tmp_path, monkeypatch):
    monkeypatch.setattr("whaleid.ensemble.rankers.registry.RANKERS", [*RANKERS, FrequencyRanker()])
    monkeypatch.setattr("whaleid.ensemble.ablation.RANKERS", [*RANKERS, FrequencyRanker()])
    world = make_world(identities=20, seed=1)
    sources = write_sources(world, tmp_path / "features", count=1)
    given = recipe(classifier=None, concat={"whiten": None}, logits=0)
    result = combine(world.images, world.folds, sources, given, world.competition, tmp_path / "out")
    names = [rung.name for rung in result.rungs]
    assert names == ["net0", "net0 logits", "concat kNN", "by frequency", "blend"]
    rung = json.loads((tmp_path / "out" / "ladder.json").read_text())["rungs"][3]
    assert rung["kind"] == "frequency" and rung["weight"] is not None and rung["below"] is not None
    assert 0 < rung["map"] < result.rung("concat kNN").score.map
    rows = ablate(world.images, world.folds, sources, given, world.competition).rows
    assert [row.name for row in rows] == ["nothing", "frequency of identities"]


def test_kinds_are_distinct_and_every_ranker_is_found_by_its_kind():
    assert len({ranker.kind for ranker in RANKERS}) == len(RANKERS)
    assert all(ranker_of(ranker.kind) is ranker for ranker in RANKERS)
