"""Networks from snapshots of the hub, in the layouts of timm and of MiewID; broken ones are one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from whaleid.config import ModelConfig
from whaleid.config.files import load_experiment
from whaleid.models import hub
from whaleid.models.backbone import build_backbone, pretrained_size
from whaleid.models.embedder import build_embedder
from whaleid.models.weights import ensure_weights, starting_files
from whaleid.utils.errors import WhaleidError

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def write_snapshot(folder: Path, content: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors")
    return f"local-dir:{folder}"


def timm_snapshot(folder: Path, **more: Any) -> tuple[str, torch.nn.Module]:
    """A tiny network as timm writes it, and the network."""
    torch.manual_seed(3)
    net = timm.create_model("test_resnet").eval()
    pretrained = {"mean": MEAN, "std": STD, "input_size": [3, 48, 80]}
    content = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": pretrained, **more}
    return write_snapshot(folder, content, net.state_dict()), net


def with_backbone(name: str, **changes: Any) -> ModelConfig:
    return load_experiment("frozen").model.model_copy(update={"backbone": name, **changes})


def test_a_snapshot_gives_network_and_preprocessing(tmp_path: Path) -> None:
    name, net = timm_snapshot(tmp_path / "net")
    backbone = build_backbone(name, folder=tmp_path / "weights").eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(PIXELS), net.forward_features(PIXELS))  # type: ignore[operator]
    assert (list(backbone.mean), list(backbone.std)) == (MEAN, STD)
    assert pretrained_size(name, tmp_path) == (80, 48)


def test_an_old_snapshot_is_flat_and_holds_torchs_own_file(tmp_path: Path) -> None:
    name, net = timm_snapshot(tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").unlink()
    (tmp_path / "net" / "config.json").write_text(json.dumps({"architecture": "test_resnet", "mean": MEAN, "std": STD}))
    torch.save(net.state_dict(), tmp_path / "net" / "pytorch_model.bin")
    backbone = build_backbone(name, folder=tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(PIXELS), net.forward_features(PIXELS))  # type: ignore[operator]
    assert list(backbone.mean) == MEAN


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    name, _ = timm_snapshot(tmp_path / "net")
    (tmp_path / "net" / "model.safetensors").unlink()
    torch.save({"conv1.weight": Trap()}, tmp_path / "net" / "pytorch_model.bin")
    with pytest.raises(WhaleidError, match="not a file of tensors alone"):
        build_backbone(name, folder=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_arguments_of_a_snapshot_reach_its_network_but_load_nothing(tmp_path: Path) -> None:
    arguments = {"drop_rate": 0.25, "pretrained": True, "checkpoint_path": str(tmp_path / "evil.pth"), "num_classes": 7}
    name, _ = timm_snapshot(tmp_path / "net", model_args=arguments)
    assert build_backbone(name, folder=tmp_path).net.drop_rate == 0.25


def test_miewids_layout(tmp_path: Path) -> None:
    """Timm network, generalised mean and batch normalisation; its classifier is skipped. Against plain arithmetic."""
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet").eval()
    channels = net.num_features
    state = {f"backbone.{key}": value for key, value in net.state_dict().items() if not key.startswith("classifier")}
    norm = {"weight": torch.rand(channels), "bias": torch.randn(channels), "running_mean": torch.randn(channels)}
    norm["running_var"] = torch.rand(channels) + 0.5
    state |= {"pooling.p": torch.tensor([2.5]), "final.weight": torch.zeros(4, channels)}
    state |= {f"bn.{key}": value for key, value in norm.items()}
    content = {"architectures": ["MiewIdNet"], "model_name": "test_efficientnet"}
    name = write_snapshot(tmp_path / "miewid", content, state)
    embedder = build_embedder(with_backbone(name), tmp_path).eval()
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        maps = net.forward_features(embedder.pixels(images))  # type: ignore[operator]
        pooled = maps.clamp(min=1e-6).pow(2.5).mean(dim=(2, 3)).pow(1 / 2.5)
        expected = (pooled - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        torch.testing.assert_close(embedder(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(WhaleidError, match="pools itself"):
        build_embedder(with_backbone(name, pool="gem"), tmp_path)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
        (lambda folder: (folder / "config.json").write_text("{"), "not readable as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "a mapping of keys to values is expected"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "dinov2"}'), "'architecture' is None"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet19"}'), "no network of timm"),
        (
            lambda folder: (folder / "config.json").write_text('{"architecture": "test_resnet", "mean": [1]}'),
            "lists of",
        ),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "resnet10t"}'), "does not fit backbone"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"architecture": "test_resnet", "model_args": {"depth": 3}}'
            ),
            "timm makes no test_resnet of it",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors and no pytorch_model.bin in"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "not readable as safetensors"),
    ],
)
def test_a_bad_snapshot_is_one_clear_line(damage: Any, expected: str, tmp_path: Path) -> None:
    name, _ = timm_snapshot(tmp_path / "net")
    damage(tmp_path / "net")
    with pytest.raises(WhaleidError, match=expected) as caught:
        build_backbone(name, folder=tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / "net") in str(caught.value)


def test_a_name_of_the_hub_is_looked_for_in_the_folder_of_weights_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(hub, "_ask", lambda url: asked.append(url) or (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(WhaleidError, match=r"weights/Whale-T is not there and the hub is out of reach \(no route\)"):
        ensure_weights("hf-hub:someone/Whale-T", "imagenet", tmp_path / "weights")
    assert len(asked) == 1 and asked[0].endswith("/someone/Whale-T/resolve/main/config.json")
    timm_snapshot(tmp_path / "weights" / "Whale-T")
    start = "hf-hub:someone/Whale-T", "imagenet", tmp_path / "weights"
    ensure_weights(*start)
    assert len(asked) == 1
    places = [Path("Whale-T", name) for name in ("config.json", "model.safetensors")]
    assert starting_files(*start) == {place: tmp_path / "weights" / place for place in places}
