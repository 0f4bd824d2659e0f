"""Patterns of Go's syntax: what they match, and what is none, in Go's words. What is expected is what Go says."""

import pytest

from controlplane.machinery.structural.patterns import PatternError, compiled


@pytest.mark.parametrize(("pattern", "fits", "fails"), [
    ("^a$", "a", "a\n"), (r"^\d+$", "12", "\u0663"), (r"^\w$", "_", "\u00e9"), (r"^\s$", "\t", "\v"),
    (r"^[\d-]+$", "1-2", "a"), ("^[]a]$", "]", "b"), ("^[[:alpha:]_]+$", "a_", "1"), ("^[^\\W]$", "a", "-"),
    (r"^[\p{L}\p{N}-]+$", "\u00e9\u0663-", "_"), (r"^\P{Lu}\pL$", "ab", "Ab"), (r"\z", "", None),
    (r"^\x41\x{42}\103$", "ABC", "abc"), (r"^\Qa.b\E$", "a.b", "axb"), ("^a(?i)b|c$", "C", "A"),
    ("(?i:a)b", "Ab", "AB"),
    ("(?m)^b$", "a\nb", "ab"), ("(?s)^.$", "\n", "ab"), ("^(?P<n>a)(?<m>b)$", "ab", "a"), ("^a{,2}$", "a{,2}", "aa"),
    ("^$?", "x", None), (r"\B", "", None), ("^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "a-b", "a-")])
def test_what_fits(pattern, fits, fails):
    assert compiled(pattern).search(fits)
    assert fails is None or not compiled(pattern).search(fails)


@pytest.mark.parametrize(("pattern", "why"), [
    ("[a", "missing closing ]: `[a`"), ("a(b", "missing closing ): `a(b`"), ("a)b", "unexpected ): `a)b`"),
    ("*a", "missing argument to repetition operator: `*`"), ("a**", "invalid nested repetition operator: `**`"),
    ("a{2}{3}", "invalid nested repetition operator: `{2}{3}`"), ("a{1001}", "invalid repeat count: `{1001}`"),
    ("a{3,1}", "invalid repeat count: `{3,1}`"), ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
    ("(?!a)", "invalid or unsupported Perl syntax: `(?!`"), ("(?<=a)b", "invalid named capture: `(?<=a)b`"),
    (r"(a)\1", r"invalid escape sequence: `\1`"), (r"\Z", r"invalid escape sequence: `\Z`"),
    ("a\\", "trailing backslash at end of expression: ``"), ("[z-a]", "invalid character class range: `z-a`"),
    ("[[:foo:]]", "invalid character class range: `[:foo:]`"), (r"[a-\d]", r"invalid escape sequence: `\d`"),
    (r"\p{Foo}", r"invalid character class range: `\p{Foo}`")])
def test_what_is_none(pattern, why):
    with pytest.raises(PatternError) as error:
        compiled(pattern)
    assert str(error.value) == f"error parsing regexp: {why}"
