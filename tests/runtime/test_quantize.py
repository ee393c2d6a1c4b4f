import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, floating_dtypes

from gistjax.runtime.quantize import (
    BITS,
    check_scales,
    dequantize,
    from_codes,
    pack_bits,
    quantize,
    to_codes,
    unpack_bits,
)

NUMBERS = {"allow_nan": False, "allow_infinity": False}


@given(
    arrays(
        floating_dtypes(sizes=(16, 32), endianness="="),
        st.tuples(*[st.integers(1, 4)] * 3),
        elements=st.one_of(
            st.floats(width=16, **NUMBERS), st.sampled_from([0.0, -0.0, 2.0**-24, 65504.0])
        ),
    ),
    st.sampled_from([(0,), (1,), (2,), (1, 2)]),
)
def test_each_number_comes_back_within_half_a_scale(array, axes):
    values, scale = quantize(array, axes)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    assert scale.size * np.prod([array.shape[axis] for axis in axes]) == array.size
    check_scales(values, scale)
    error = np.abs(dequantize(values, scale).astype(np.float64) - array)
    assert (error <= 0.5 * scale.astype(np.float64) * (1 + 1e-4)).all()


@pytest.mark.parametrize(
    "row",
    [
        [0.0, 0.0],
        [-3.5, -3.5],
        [1e-45, -2e-45],
        [2e-43, -1.7e-43],  # a scale that were a multiple of 1.4e-45 itself would give 142
        [3.4e38, -3.4e38],
        [1.1754944e-38, 1e-40],
        [],
    ],
)
def test_extremes_come_back_too(row):
    array = np.array([row, row], np.float32)
    values, scale = quantize(array, 1)
    assert scale.shape == (2, 1) and np.isfinite(scale).all() and (scale > 0).all()
    back = dequantize(values, scale)
    assert np.isfinite(back).all()
    assert (np.abs(back.astype(np.float64) - array) <= scale * (0.5 + 1e-4)).all()
    if len(set(row)) == 1:
        np.testing.assert_allclose(back, array, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        quantize(np.array([1.0, bad]), 0)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (np.ones((2, 1), np.int8), "are int8"),
        (np.ones(2, np.float32), "have shape"),
        (np.ones((2, 3), np.float32), "have shape"),
        (np.ones((3, 4), np.float16), "have shape"),
        (np.array([[1], [np.nan]], np.float32), "not finite and positive"),
        (np.array([[1], [np.inf]], np.float16), "not finite and positive"),
        (np.array([[1], [-1]], np.float32), "not finite and positive"),
        (np.array([[1], [0]], np.float32), "not finite and positive"),
    ],
)
def test_scales_that_are_none_are_refused(scale, says):
    with pytest.raises(ValueError, match=says):
        check_scales(np.ones((2, 4), np.int8), scale)


def test_half_scales_do_not_overflow():
    values, scale = np.full((1, 2), 127, np.int8), np.full((1, 1), 60000, np.float16)
    assert dequantize(values, scale).tolist() == [[127 * 60000.0] * 2]


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))


@given(
    arrays(
        np.float32,
        SHAPES,
        elements=st.one_of(
            st.floats(-6e4, 6e4, width=32, **NUMBERS),
            st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 2.0**-24, 100.001, -100.001]),
        ),
    ),
    st.sampled_from([0, 1]),
    st.sampled_from(BITS),
)
def test_each_code_is_within_half_a_scale(array, axis, bits):
    """Also at the ends of its range, though scale and offset are of half precision."""
    codes, scale, offset = to_codes(array, axis, bits)
    assert (codes.dtype, scale.dtype, offset.dtype) == (np.uint8, np.float16, np.float16)
    assert codes.max() < 2**bits and np.isfinite(scale).all() and (scale > 0).all()
    error = np.abs(from_codes(codes, scale, offset).astype(np.float64) - array)
    wide = np.abs(array).max() + np.abs(offset.astype(np.float64)).max()
    assert (error <= scale.astype(np.float64) / 2 + 1e-6 * wide).all()
    width = codes.shape[-1]
    np.testing.assert_array_equal(unpack_bits(pack_bits(codes, bits), bits, width), codes)


@pytest.mark.slow
@given(st.sampled_from(BITS), st.data())
@settings(max_examples=20)  # each shape is a program to compile
def test_codes_are_packed_and_unpacked(bits, data):
    """In the fewest bytes, as one number whose digits are the codes, the first the lowest."""
    shape = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 40)))
    codes = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == (shape[0], -(-shape[1] * bits // 8))
    for row, content in zip(codes.tolist(), packed, strict=True):
        number = sum(code << bits * i for i, code in enumerate(row))
        assert int.from_bytes(content.tobytes(), "little") == number
    for content in (packed, jnp.asarray(packed)):
        found = unpack_bits(content, bits, shape[1])
        assert isinstance(found, type(content)) and found.dtype == np.uint8
        np.testing.assert_array_equal(found, codes)


def test_codes_lie_as_the_page_says():
    """Of two codes of 4 bits in a byte the first is in its low half."""
    codes = np.array([[1, 2, 7, 0, 0, 0, 0, 7]], np.uint8)
    assert pack_bits(codes, 4).tolist() == [[0x21, 0x07, 0, 0x70]]
    assert pack_bits(codes, 3).tolist() == [[0b11_010_001, 0b1, 0b11100000]]
    assert pack_bits(codes % 4, 2).tolist() == [[0b00_11_10_01, 0b11_00_00_00]]
    assert pack_bits(codes, 8).tolist() == codes.tolist()


@pytest.mark.parametrize(
    ("bad", "says"),
    [(np.nan, "not finite"), (-np.inf, "not finite"), (-7e4, "beyond half"), (-65510.0, "beyond")],
)
def test_what_has_no_code_is_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        to_codes(np.full((1, 2), bad, np.float32), 1, 4)
