from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery import quantity


@pytest.mark.parametrize(("text", "want"), [
    ("0.05", "50m"), ("1.5", "1500m"), ("1000", "1k"), ("1000m", "1"), ("1024Mi", "1Gi"), ("1.5Gi", "1536Mi"),
    ("0.5Ki", "512"), ("1023", "1023"), ("1e3", "1e3"), ("1E3", "1e3"), ("12e4", "120e3"), ("1E", "1E"),
    ("-1.5Gi", "-1536Mi"), ("0", "0"), ("0Mi", "0"), ("1.1Gi", "1181116007"), ("100n", "100n"), ("0.1n", "1n"),
    (".5", "500m"), ("5.", "5"), (2, "2"), (0.5, "500m"), ("1000Ki", "1000Ki"), ("99999999999E", "9223372036854775807"),
    ("1e99999999999", "9223372036854775807e0".removesuffix("e0")), ("0.0001Ki", "102400u")])
def test_canonical_spelling(text, want):
    assert quantity.canonical(text) == want


@pytest.mark.parametrize(("text", "why"), [
    ("", "regular expression"), ("abc", "regular expression"), ("1x", "regular expression"), ("1 Gi", "regular"),
    ("1.2.3", "regular expression"), ("1kk", "suffix"), ("1iK", "suffix"), ("5e", "suffix"), ("--1", "suffix"),
    ("Mi", "numeric")])
def test_refusals_in_upstreams_words(text, why):
    with pytest.raises(ValueError, match=why):
        quantity.parse(text)


def test_rounding_to_what_is_asked_for():
    assert quantity.parse("1.0001").milli() == 1001
    assert quantity.parse("100m").value() == 1
    assert quantity.parse("-100m").value() == -1  # away from zero, as upstream


_SUFFIXES = st.sampled_from(["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "e2", "e-3"])


@given(st.integers(-10**6, 10**6), _SUFFIXES)
def test_the_canonical_text_is_a_fixed_point_of_the_same_number(number, suffix):
    parsed = quantity.parse(f"{number}{suffix}")
    again = quantity.parse(str(parsed))
    assert again == parsed
    assert str(again) == str(parsed)


@given(st.integers(0, 10**6), st.integers(0, 10**6), _SUFFIXES, _SUFFIXES)
def test_sums_and_order_agree_with_exact_arithmetic(a, b, s, t):
    x, y = quantity.parse(f"{a}{s}"), quantity.parse(f"{b}{t}")
    assert Fraction((x + y).nano) == Fraction(x.nano) + Fraction(y.nano)
    assert quantity.compare(f"{a}{s}", f"{b}{t}") == (x.nano > y.nano) - (x.nano < y.nano)
    assert (x + y) - y == x
