"""Decoding: every format, orientation, depth and transparency, and what is refused, by check and run alike."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from test_images import difference, drawing

from whaleid.data.decoding import decode
from whaleid.data.fingerprints import fingerprint_images
from whaleid.data.images import resize
from whaleid.data.masks import GREY
from whaleid.utils.errors import WhaleidError


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.tif"])
def test_decode_reads_rgb_in_every_format(tmp_path, name):
    Image.fromarray(drawing()).save(tmp_path / name, quality=95)
    assert decode(tmp_path / name).shape == (80, 120, 3)
    assert difference(decode(tmp_path / name), drawing()) < 3


PLACES = ("exif", "attribute", "element")
RDF = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'


def oriented(kind: str, place: str, value: int) -> bytes:
    """A file of the drawing that says its orientation in one place."""
    exif = Image.Exif()
    if place == "exif":
        exif[ExifTags.Base.Orientation] = value
    said = f' tiff:Orientation="{value}">' if place == "attribute" else f"><tiff:Orientation>{value}</tiff:Orientation>"
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{RDF}{said}</rdf:Description></rdf:RDF></x:xmpmeta>".encode()
    options: dict[str, Any] = {"exif": exif} if place == "exif" else {"xmp": xmp}
    if kind == "PNG" and place != "exif":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": info}
    if kind == "TIFF" and place != "exif":
        options = {"tiffinfo": {700: xmp}}
    file = io.BytesIO()
    Image.fromarray(drawing()).save(file, kind, quality=95, **options)
    return file.getvalue()


TURNED = {
    2: drawing()[:, ::-1],
    3: drawing()[::-1, ::-1],
    4: drawing()[::-1],
    5: drawing().transpose(1, 0, 2),
    6: np.rot90(drawing(), 3),
    7: np.rot90(drawing(), 2).transpose(1, 0, 2),
    8: np.rot90(drawing()),
}


@pytest.mark.parametrize("value", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_one_orientation_for_the_table_and_for_the_network(tmp_path, kind, place, value):
    """Every format, place and value, the impossible ones too: upright pixels, and the same size in the table."""
    (tmp_path / "a").write_bytes(oriented(kind, place, value))
    pixels, upright = decode(tmp_path / "a"), TURNED.get(value, drawing())
    assert pixels.shape == upright.shape and difference(pixels, upright) < 3
    found = fingerprint_images(tmp_path, ["a"], 1)
    assert found.size[0].tolist() == [pixels.shape[1], pixels.shape[0]]
    small = decode(tmp_path / "a", reduce=2)
    assert difference(small, resize(np.ascontiguousarray(upright), (small.shape[1], small.shape[0]))) < 3


def test_exif_that_cannot_be_read_is_no_orientation(tmp_path):
    Image.fromarray(drawing()).save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF", quality=95)
    assert difference(decode(tmp_path / "a.jpg"), drawing()) < 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_decode_scales_sixteen_bits(tmp_path, name):
    grey = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / name), grey)
    assert difference(decode(tmp_path / name), np.repeat((grey >> 8)[:, :, None], 3, axis=2)) <= 1


def test_decode_converts_grey_palette_and_cmyk(tmp_path):
    grey = Image.fromarray(drawing()).convert("L")
    grey.save(tmp_path / "grey.jpg", quality=95)
    assert difference(decode(tmp_path / "grey.jpg"), np.repeat(np.array(grey)[:, :, None], 3, axis=2)) < 2
    Image.fromarray(drawing()).quantize(256).save(tmp_path / "palette.gif")
    assert difference(decode(tmp_path / "palette.gif"), drawing()) < 12
    Image.fromarray(drawing()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert difference(decode(tmp_path / "cmyk.jpg"), drawing()) < 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.995])
def test_decode_refuses_truncated_files(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name, quality=90)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WhaleidError, match=name) as caught:
        decode(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_decode_refuses_a_jpeg_whose_end_is_zeros_and_takes_one_with_something_behind_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    whole = decode(path)
    path.write_bytes(content[:3000].ljust(len(content), b"\0"))  # a download that never finished
    with pytest.raises(WhaleidError, match="truncated"):
        decode(path)
    for behind in (b"\0" * 30, b"a phone's own data " * 20):
        path.write_bytes(content + behind)
        assert difference(decode(path), whole) < 1


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82"])
def test_decode_refuses_what_is_no_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(WhaleidError, match=r"a\.jpg") as caught:
        decode(tmp_path / "a.jpg")
    assert "\n" not in str(caught.value)


def test_decode_refuses_a_missing_file(tmp_path):
    with pytest.raises(WhaleidError, match="cannot be read"):
        decode(tmp_path / "absent.jpg")


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["grey.png", "colour.png", "alpha.png", "grey.tif"])
def test_decode_keeps_what_a_camera_of_few_bits_saw(tmp_path, name, bits):
    """10 bits in a file of 16 use a 64th of its range: they become the whole range, not four grey levels."""
    grey = np.linspace(0, (1 << bits) - 1, 64 * 32).reshape(32, 64).astype(np.uint16)
    shown = np.repeat((grey >> (bits - 8))[:, :, None], 3, axis=2)
    alpha = np.full((32, 64, 1), (1 << bits) - 1, np.uint16)
    planes = {"grey": grey, "colour": shown * 0 + grey[:, :, None], "alpha": np.dstack([*[grey] * 3, alpha])}
    cv2.imwrite(str(tmp_path / name), planes[name.partition(".")[0]])
    assert difference(decode(tmp_path / name), shown) <= 1


def test_what_a_cut_out_hides_does_not_come_back(tmp_path):
    hidden = np.zeros((80, 120), bool)
    hidden[:, :60] = True
    cut = np.dstack([drawing(), np.where(hidden, 0, 255).astype(np.uint8)])
    seen = np.where(hidden[:, :, None], np.uint8(GREY), drawing())
    Image.fromarray(cut).save(tmp_path / "a.png")
    Image.fromarray(cut).save(tmp_path / "a.webp", lossless=True)
    for name in ("a.png", "a.webp"):
        assert np.array_equal(decode(tmp_path / name), seen)
        assert (decode(tmp_path / name, behind=0)[hidden] == 0).all()


FAULTS = {
    "float.tif": "floating point pixels have no standard range",
    "heic.jpg": "HEIC: convert it to JPEG",
    "text.jpg": "not an image",
    "empty.jpg": "0 bytes",
    "large.png": "40000 x 40000 pixels, over 268,435,456: make it smaller",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_no_stage_reads_is_one_line_for_the_check_and_for_the_run(tmp_path, name):
    """The same words from both, and no object's address in them."""
    content = {"heic.jpg": b"\0\0\0\x18ftypheic" + bytes(64), "text.jpg": b"no image at all", "empty.jpg": b""}
    path = tmp_path / name
    if name == "float.tif":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    elif name == "large.png":
        path.write_bytes(without_pixels(40_000, 40_000))
    else:
        path.write_bytes(content[name])
    found = fingerprint_images(tmp_path, [name], 1).problem[0]
    assert found.startswith(FAULTS[name]) and " 0x" not in found
    with pytest.raises(WhaleidError) as caught:
        decode(path)
    assert str(caught.value) == f"{path}: {found}; restore the image"


def without_pixels(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels begin."""
    chunks = b"IHDR" + struct.pack(">II5B", width, height, 8, 2, 0, 0, 0), b"IDAT"
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_two_hundred_megapixels_are_no_fault(tmp_path):
    (tmp_path / "a.png").write_bytes(without_pixels(20_000, 10_000))
    assert fingerprint_images(tmp_path, ["a.png"], 1).problem.tolist() == ["truncated"]
