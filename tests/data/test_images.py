import threading
import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from spile.data.images import apply, read_image
from spile.data.source import BadSample
from spile.preprocessing import ImagePreprocessing


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_for_every_orientation(orientation):
    upright = noise(6, 9)
    # What a camera stores, per orientation: the inverse of the rotation a viewer applies.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(encoded(image, exif=exif)), upright)


def test_exif_rotation_is_applied_to_tiff_once_only():
    upright = noise(6, 9)
    image = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    exif = image.getexif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(read_image(encoded(image, "TIFF", exif=exif)), upright)


@pytest.mark.parametrize(
    "exif", [b"garbage!", b"II*\x00", b"II*\x00\xff\xff\xff\xff", b"MM\x00*\x00\x00\x00\x08\xff"]
)
def test_corrupt_exif_leaves_the_pixels_alone(exif):
    data = encoded(Image.fromarray(noise(6, 9)), exif=b"Exif\x00\x00" + exif)
    np.testing.assert_array_equal(read_image(data), noise(6, 9))


def test_cmyk_jpeg_reads_as_the_colours_it_shows():
    red = Image.new("RGB", (8, 8), (200, 30, 40)).convert("CMYK")
    assert np.abs(read_image(encoded(red, "JPEG", quality=95)).astype(int) - (200, 30, 40)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_greyscale_is_scaled_not_clipped(format):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    read = read_image(encoded(Image.fromarray(values), format))
    np.testing.assert_array_equal(read[0, :, 0], [0, 1, 128, 255])
    assert read.shape == (1, 4, 3)


def test_big_endian_and_32_bit_containers_of_16_bit_values():
    values = np.array([[0, 257, 65535]])
    for image in (Image.fromarray(values.astype(">u2")), Image.fromarray(values.astype(np.int32))):
        np.testing.assert_array_equal(read_image(image)[0, :, 1], [0, 1, 255])


def test_pixels_without_a_fixed_range_are_bad_samples():
    with pytest.raises(BadSample, match="floating-point"):
        read_image(Image.fromarray(np.array([[0.5]], dtype=np.float32)))
    with pytest.raises(BadSample, match=r"-5\.\.70000 are outside 0\.\.65535"):
        read_image(Image.fromarray(np.array([[-5, 70000]], dtype=np.int32)))


def test_transparency_is_laid_on_white():
    pixels = np.array([[[0, 0, 0, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    expected = [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(pixels))), expected)
    np.testing.assert_array_equal(read_image(pixels), expected)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_palettes_with_and_without_transparency(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([250, 0, 0, 0, 0, 250])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(encoded(image)), [[[250, 0, 0], [0, 0, 250]]])
    read = read_image(encoded(image, transparency=transparency))
    np.testing.assert_array_equal(read, [[[250, 0, 0], [255, 255, 255]]])


def test_grey_with_a_transparent_level_and_grey_alpha():
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    np.testing.assert_array_equal(read_image(encoded(grey, transparency=9))[0, :, 2], [7, 255])
    alpha = Image.merge("LA", [grey, Image.fromarray(np.array([[255, 0]], dtype=np.uint8))])
    np.testing.assert_array_equal(read_image(encoded(alpha))[0, :, 2], [7, 255])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "YCbCr", "HSV"])
def test_other_modes_become_rgb(mode):
    read = read_image(Image.new("L", (5, 4), 255).convert("RGB").convert(mode))
    assert read.shape == (4, 5, 3) and read.dtype == np.uint8
    np.testing.assert_array_equal(read, 255)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_grey_arrays_become_rgb(shape):
    grey = np.arange(20, dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_image(grey), np.repeat(grey.reshape(4, 5, 1), 3, 2))


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "TIFF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(read_image(data)[0, 0], [255, 0, 0])


def test_broken_files_are_bad_samples_with_short_reasons(tmp_path):
    whole = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    cases = {
        "empty.png": (b"", "empty file"),
        "text.png": (b"not an image", "not an image that Pillow can read"),
        "cut.jpg": (whole[: len(whole) // 2], "broken image: OSError: image file is truncated"),
        "cut.png": (encoded(Image.fromarray(noise(64, 64)))[:3000], "broken image"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        for given in (data, tmp_path / name, str(tmp_path / name)):
            with pytest.raises(BadSample, match=reason) as caught:
                read_image(given)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 260
    with pytest.raises(BadSample, match=r"^file not found$"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(BadSample, match="is a directory"):
        read_image(tmp_path)


def test_images_over_the_pixel_limit_are_refused_before_decoding(tmp_path):
    bomb = encoded(Image.new("1", (20_000, 20_000)))  # 400 megapixels in some 50 kB: over Pillow's own limit
    with pytest.raises(BadSample, match="too large"):
        read_image(bomb)
    with pytest.raises(BadSample, match="too large: 9x6 is more than 53 pixels"):
        read_image(encoded(Image.fromarray(noise(6, 9))), max_pixels=53)
    assert read_image(encoded(Image.fromarray(noise(6, 9))), max_pixels=54).shape == (6, 9, 3)


def test_no_warning_leaks_from_any_thread(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # a 64 x 64 image now makes Pillow warn of a bomb
    suspicious = encoded(Image.fromarray(noise(64, 64)))
    seen = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=lambda: seen.append(read_image(suspicious))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(AssertionError), warnings.catch_warnings():
            warnings.simplefilter("error")  # the test itself can see warnings
            try:
                Image.open(BytesIO(suspicious))
            except Image.DecompressionBombWarning:
                raise AssertionError from None
    assert len(seen) == 4
    assert caught == []


SIZES = [
    (375, 500),
    (500, 375),
    (224, 224),
    (343, 341),
    (225, 301),
    (100, 130),
    (60, 400),
    (1, 1),
    (257, 256),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(
    "resize, crop", [(256, (224, 224)), (None, (224, 224)), ((96, 130), None), (120, (125, 97))]
)
def test_resize_and_crop_equal_torchvision_bit_for_bit(size, interpolation, resize, crop):
    from torchvision import transforms

    image = noise(*size)
    steps = []
    if resize is not None:
        steps.append(transforms.Resize(resize, transforms.InterpolationMode[interpolation.upper()]))
    if crop is not None:
        steps.append(transforms.CenterCrop(crop))
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray(image)))
    spec = ImagePreprocessing(resize=resize, crop=crop, interpolation=interpolation)
    np.testing.assert_array_equal(apply(image, spec), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "crop_pct, mode", [(0.875, "center"), (0.95, "center"), (1.0, "squash"), (0.9, "squash")]
)
def test_equal_to_timms_evaluation_transform_bit_for_bit(size, crop_pct, mode):
    from timm.data import create_transform

    image = noise(*size, seed=1)
    transform = create_transform(
        224, is_training=False, interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode, normalize=False
    )
    expected = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)
    scaled = int(224 / crop_pct)
    spec = ImagePreprocessing(
        resize=scaled if mode == "center" else (scaled, scaled), crop=(224, 224), interpolation="bicubic"
    )
    np.testing.assert_array_equal(apply(image, spec), expected)


def test_one_channel_is_greyscale_before_resizing():
    from torchvision import transforms

    image = noise(50, 70)
    steps = [transforms.Grayscale(), transforms.Resize(30), transforms.CenterCrop(28)]
    expected = np.asarray(transforms.Compose(steps)(Image.fromarray(image)))
    read = apply(image, ImagePreprocessing(resize=30, crop=(28, 28), channels=1))
    assert read.shape == (28, 28, 1)
    np.testing.assert_array_equal(read[:, :, 0], expected)


def test_a_thin_strip_does_not_become_a_giant():
    with pytest.raises(BadSample, match="aspect too extreme: 20000x1"):
        apply(noise(1, 20_000), ImagePreprocessing(resize=224, crop=(224, 224)))
