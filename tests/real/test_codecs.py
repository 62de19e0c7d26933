"""Image codecs, compiled by others, work on files and pixels that lie in shared heaps; Pillow says what is right."""

import io

import numpy as np
import pytest
from PIL import Image

from shmwasm import on_client
from shmwasm.errors import WorkerTrapError

PNG = "@cwasm/lodepng@0.1.9/lodepng.wasm"
JPEG = "@cwasm/jpeg-turbo@0.1.3/jpeg-turbo.wasm"
WEBP = "@cwasm/webp@0.1.5/webp.wasm"

TJPF_RGBA = 7

pytestmark = pytest.mark.timeout(400)  # the first test downloads the packages


@on_client
def set_jump(caller, buffer):
    return 0


@on_client
def long_jump(caller, buffer, value):
    raise ValueError("the decoder found the picture damaged")


@pytest.fixture
def picture():
    """Half of it gradients, as in a photograph, half of it noise."""
    generator = np.random.default_rng(3)
    pixels = generator.integers(0, 256, (300, 401, 4), dtype="u1")
    pixels[:150] = np.fromfunction(lambda y, x, c: (x * (c + 1) + y * 2) // 4 % 256, (150, 401, 4), dtype="u4")
    return Image.fromarray(pixels, "RGBA")


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def copied(heap, content):
    block = heap.malloc(len(content))
    block.view[:] = content
    return block


def pixels_at(source, address, width, height):
    return np.frombuffer(source, "u1", width * height * 4, address).reshape(height, width, 4)


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "L", "P", "1"])
def test_a_png_file_in_a_heap_is_decoded_to_the_pixels_that_pillow_finds(spawn, heap, picture, mode):
    content = encoded(picture.convert(mode), "PNG")
    codec = spawn(PNG, heap)
    answer = heap.malloc(12)  # where the pixels are, width, height: the guest stores them into the heap
    file = copied(heap, content)
    assert codec.call("lodepng_decode32", answer, answer.address + 4, answer.address + 8, file, len(content)) == 0
    where, width, height = map(int, answer.ndarray("u4"))
    assert (width, height) == picture.size
    assert (pixels_at(codec.memory, where, width, height) == np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))).all()


def test_a_png_file_is_decoded_where_it_is_mapped_read_only_from_the_disk(spawn, shared_runtime, heap, picture, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture, "PNG"))
    disk = shared_runtime.create_shared_heap(pre_allocated=str(path), read_only=True)
    chain = shared_runtime.chain_shared_heaps(heap, disk)
    codec = spawn(PNG, chain)
    answer = heap.malloc(12)
    size = path.stat().st_size
    assert codec.call("lodepng_decode32", answer, answer.address + 4, answer.address + 8, disk.start, size) == 0
    assert (pixels_at(codec.memory, int(answer.ndarray("u4")[0]), *picture.size) == np.asarray(picture)).all()
    codec.close()
    shared_runtime.unchain_shared_heaps(chain)
    disk.close()


def test_pixels_in_a_heap_are_encoded_to_a_png_file_that_pillow_reads(spawn, heap, picture):
    codec = spawn(PNG, heap)
    pixels = copied(heap, picture.tobytes())
    answer = heap.malloc(8)
    assert codec.call("lodepng_encode32", answer, answer.address + 4, pixels, *picture.size) == 0
    where, size = map(int, answer.ndarray("u4"))
    assert Image.open(io.BytesIO(codec.memory[where : where + size])).tobytes() == picture.tobytes()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_file_in_a_heap_is_decoded_into_the_same_heap(spawn, heap, picture, subsampling, progressive):
    content = encoded(picture.convert("RGB"), "JPEG", subsampling=subsampling, progressive=progressive)
    codec = spawn(JPEG, heap, env={"setjmp": set_jump, "longjmp": long_jump})
    file, facts = copied(heap, content), heap.malloc(16)
    decoder = codec.call("tjInitDecompress")
    codec.call("tjDecompressHeader3", decoder, file, len(content), *range(facts.address, facts.address + 16, 4))
    width, height = map(int, facts.ndarray("u4")[:2])
    assert (width, height) == picture.size
    pixels = heap.malloc(width * height * 4)
    assert codec.call("tjDecompress2", decoder, file, len(content), pixels, width, 0, height, TJPF_RGBA, 0) == 0
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert (pixels.ndarray("u1", (height, width, 4)) == expected).all()


def test_a_damaged_jpeg_file_in_a_heap_is_the_decoders_own_error(spawn, heap, picture):
    content = encoded(picture.convert("RGB"), "JPEG")[:2] + bytes(100)
    codec = spawn(JPEG, heap, env={"setjmp": set_jump, "longjmp": long_jump})
    file, facts = copied(heap, content), heap.malloc(16)
    decoder = codec.call("tjInitDecompress")
    with pytest.raises(WorkerTrapError, match="the decoder found the picture damaged"):
        codec.call("tjDecompressHeader3", decoder, file, len(content), *range(facts.address, facts.address + 16, 4))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_file_in_a_heap_is_decoded_to_the_pixels_that_pillow_finds(spawn, heap, picture, lossless):
    content = encoded(picture, "WEBP", lossless=lossless)
    codec = spawn(WEBP, heap)
    facts = heap.malloc(8)
    file = copied(heap, content)
    where = codec.call("WebPDecodeRGBA", file, len(content), facts, facts.address + 4)
    width, height = map(int, facts.ndarray("u4"))
    assert (width, height) == picture.size
    assert (pixels_at(codec.memory, where, width, height) == np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))).all()
