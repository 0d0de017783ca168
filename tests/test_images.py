"""Cropping, resizing, and the size of the input."""

import numpy as np
import pytest
from PIL import Image

from whaleid.config import ImageConfig
from whaleid.data.images import crop_box, input_size, prepare, reduction, resize
from whaleid.utils.errors import WhaleidError


def drawing(width: int = 120, height: int = 80) -> np.ndarray:
    """A smooth RGB drawing whose channels differ: red rises to the right, green downwards, blue is 40."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 40)], axis=2).astype(np.uint8)


def config(**settings) -> ImageConfig:
    base = {"width": None, "height": None, "pixels": None}
    return ImageConfig(box_margin=0.0, cache="raw", mirror_identities=False, **{**base, **settings})


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def test_crop_box_widens_and_clips():
    image = drawing(100, 60)
    assert np.array_equal(crop_box(image, np.array([20, 10, 60, 30]), 0.0), image[10:30, 20:60])
    assert np.array_equal(crop_box(image, np.array([20, 10, 60, 30]), 0.1), image[8:32, 16:64])
    assert np.array_equal(crop_box(image, np.array([20.4, 10.6, 60.2, 30.1]), 0.0), image[10:31, 20:61])
    assert crop_box(image, np.array([0, 0, 100, 60]), 0.5).shape == (60, 100, 3)
    assert crop_box(image, np.array([-50, -50, 500, 20]), 0.0).shape == (20, 100, 3)


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (30, 10, 20, 20), (np.nan, 0, 5, 5)])
def test_crop_box_refuses_empty_boxes(box):
    with pytest.raises(WhaleidError, match="empty"):
        crop_box(drawing(), np.array(box, dtype=float), 0.1)


def test_crop_box_refuses_boxes_outside():
    with pytest.raises(WhaleidError, match="outside"):
        crop_box(drawing(), np.array([200.0, 10, 300, 20]), 0.0)


def test_resize_averages_where_it_shrinks():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mean = image.reshape(10, 4, 20, 3, 3).mean(axis=(1, 3))
    assert difference(resize(image, (20, 10)), np.round(mean)) < 0.6
    assert resize(image, (120, 10)).shape == (10, 120, 3)  # one side grows, the other shrinks
    assert np.array_equal(resize(image, (60, 40)), image)
    constant = np.full((5, 7, 3), 77, np.uint8)
    assert (resize(constant, (64, 32)) == 77).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_prepare_is_the_same_picture_with_and_without_reduced_decoding(tmp_path, name):
    image = drawing(1050, 603)
    Image.fromarray(image).save(tmp_path / name, quality=95)
    box = np.array([101.0, 50, 951, 553])
    assert reduction(box, (128, 64)) == 2 and reduction(box, (32, 16)) == 8 and reduction(box, (512, 256)) == 1
    for size in ((128, 64), (32, 16)):
        assert difference(prepare(tmp_path / name, box, 0.05, size), resize(crop_box(image, box, 0.05), size)) < 2


def test_prepare_names_the_file_of_a_bad_box(tmp_path):
    Image.fromarray(drawing()).save(tmp_path / "a.png")
    with pytest.raises(WhaleidError, match=r"a\.png: box .* outside"):
        prepare(tmp_path / "a.png", np.array([500.0, 500, 600, 600]), 0.0, (32, 32))


def test_input_size_takes_what_is_given():
    assert input_size(config(width=130, height=70), np.empty((0, 4))) == (130, 70)


@pytest.mark.parametrize("pixels", [2048, 8192, 16384, 131072, 589824])
@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.37, 2.0, 3.0])
def test_input_size_keeps_budget_and_aspect(pixels, aspect):
    sides = np.array([[0, 0, 100 * aspect, 100.0]] * 3 + [[5, 5, 15, 1000.0]])  # the odd one must not count
    width, height = input_size(config(pixels=pixels), sides)
    step = 32 if min(np.sqrt(pixels * aspect), np.sqrt(pixels / aspect)) >= 96 else 16
    assert width % step == 0 and height % step == 0 and min(width, height) >= step
    if pixels >= 8192:
        assert 0.7 < width * height / pixels < 1.4
        assert 0.7 < width / height / aspect < 1.4
    # no other pair of multiples does better on both
    for other_width in (width - step, width, width + step):
        for other_height in (height - step, height, height + step):
            if min(other_width, other_height) > 0:
                better = abs(np.log(other_width * other_height / pixels)) < abs(np.log(width * height / pixels))
                truer = abs(np.log(other_width / other_height / aspect)) < abs(np.log(width / height / aspect))
                assert not (better and truer)


def test_input_size_knows_the_flukes():
    flukes = np.array([[0.0, 0, 1050, 525]])
    assert input_size(config(pixels=128 * 64), flukes) == (128, 64)
    assert input_size(config(pixels=512 * 256), flukes) == (512, 256)


def test_input_size_without_boxes_is_refused():
    with pytest.raises(WhaleidError, match="boxes"):
        input_size(config(pixels=8192), np.array([[3.0, 3, 3, 3]]))
