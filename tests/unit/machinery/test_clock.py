"""Times as Kubernetes writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery.clock import parse_rfc3339, rfc3339, rfc3339_micro


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "1970-01-01T00:00:00Z"), (1700000000.9, "2023-11-14T22:13:20Z"),
    (-62135596798, "0001-01-01T00:00:02Z")])  # two seconds after Go's zero time: clients do send it
def test_years_have_four_digits(seconds, text):
    assert rfc3339(seconds) == text


@given(st.integers(-62135596800, 253402300799))
def test_what_is_written_is_read_back(seconds):
    assert parse_rfc3339(rfc3339(seconds)) == parse_rfc3339(rfc3339_micro(seconds)) == seconds
