"""A training step and a forward pass of EfficientNet-Lite0 when its first stages stay as pretrained.

    .venv/bin/python benchmarks/bench_frozen_stages.py

One core, batches of 16, processor time. The settings take turns; a ratio is the median over the rounds of a step of the
whole network over one with frozen stages. Result: benchmarks/results/frozen_stages.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import device_seconds

from whaleid.models.backbone import build_backbone, freeze_stages
from whaleid.utils.files import write_json

RESULTS = Path(__file__).parent / "results" / "frozen_stages.json"
NAME, BATCH, ROUNDS = "tf_efficientnet_lite0", 16, 8
STAGES = (0, 3, 4, 5, 6)
SIDES = (96, 128, 176)


def main() -> None:
    torch.set_num_threads(1)
    rows = [row for side in SIDES for row in measure(side)]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    write_json(RESULTS, {"backbone": NAME, "batch": BATCH, "rounds": ROUNDS, "rows": rows})


def measure(side: int) -> list[dict[str, float]]:
    """A row for each number of frozen stages, at square images."""
    images = torch.rand(BATCH, 3, side, side).to(memory_format=torch.channels_last)
    steps = {number: training_step(number, images) for number in STAGES}
    seconds = {number: [] for number in STAGES}
    forward = forward_pass(images)
    passes = []
    for turn in range(ROUNDS + 1):
        for number, step in steps.items():
            seconds[number].append(device_seconds(step))
        passes.append(device_seconds(forward))
        if turn == 0:  # to warm up
            passes.clear()
            for taken in seconds.values():
                taken.clear()
    return [row(side, number, seconds, passes) for number in STAGES]


def row(side: int, number: int, seconds: dict[int, list[float]], passes: list[float]) -> dict[str, float]:
    own = seconds[number]
    faster = [whole / taken for whole, taken in zip(seconds[0], own, strict=True)]
    return {
        "pixels": side * side,
        "frozen_stages": number,
        "images_a_second": round(BATCH / statistics.median(own), 1),
        "times_as_fast": round(statistics.median(faster), 2),
        "forward_over_step": round(statistics.median(one / taken for one, taken in zip(passes, own, strict=True)), 2),
    }


def training_step(number: int, images: torch.Tensor) -> Callable[[], None]:
    backbone = build_backbone(NAME, "random").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone.train()
    if number:
        freeze_stages(backbone, number)
    optimizer = torch.optim.AdamW([weight for weight in backbone.parameters() if weight.requires_grad], fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backbone(images).mean().backward()
        optimizer.step()

    return step


def forward_pass(images: torch.Tensor) -> Callable[[], None]:
    backbone = build_backbone(NAME, "random").to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def run() -> None:
        with torch.no_grad():
            backbone(images)

    return run


if __name__ == "__main__":
    main()
