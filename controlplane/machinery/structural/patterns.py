"""Regular expressions as Go reads them: what is one, in Go's words where not, and the same in Python's.

A schema's patterns are of Go's syntax (RE2): no looking around and no references back, classes of ASCII, `$` at the
very end. Owns the reading of a pattern into pieces, each with its form in Python. Pure. Called by the validation of
values and of schemas.

Upstream: the package regexp/syntax of Go's library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

KEPT = 1024  # compiled patterns: those of all schemas in use
MOST = 1000  # times of a repetition; Go's limit
_CLASSES = {"d": "0-9", "s": r"\t\n\f\r ", "w": "0-9A-Za-z_"}
_NEGATED = {"D": r"\x00-/:-\U0010ffff", "S": r"\x00-\x08\x0b\x0e-\x1f!-\U0010ffff", "W": r"\x00-/:-@\[-\^`{-\U0010ffff"}
_POSIX = {"alpha": "a-zA-Z", "digit": "0-9", "alnum": "a-zA-Z0-9", "upper": "A-Z", "lower": "a-z",
          "space": r"\t\n\v\f\r ", "xdigit": "0-9A-Fa-f", "word": "0-9A-Za-z_", "punct": r"!-/:-@\[-`{-~",
          "blank": r"\t ", "cntrl": r"\x00-\x1f\x7f", "print": " -~", "graph": "!-~", "ascii": r"\x00-\x7f"}
_SIGNS = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_PLACES = {"A": r"(?:\A)", "z": r"(?:\Z)", "b": r"(?a:\b)", "B": r"(?a:(?!\b))"}
_KIND = re.compile(r"([pP])(?:\{(\^?)([^}]*)\}|(.))", re.S)
_CATEGORY = re.compile("C[cfos]?|L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?")  # of Unicode
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}", re.ASCII)
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|x\{([0-9A-Fa-f]{1,6})\}|([1-7][0-7]{1,2}|0[0-7]{0,2})")
_NAMED = re.compile(r"\(\?P?<([^>]*)>")
_FLAGS = re.compile(r"\(\?([imsU]*)(?:-([imsU]+))?([:)])")
Member = tuple[str, int | None]  # form in Python, and the code where it is one character


class PatternError(ValueError):
    """Why a text is no pattern: Go's word for it, and the part it is about."""

    def __init__(self, why: str, part: str) -> None:
        super().__init__(f"error parsing regexp: {why}: `{part}`")


@lru_cache(KEPT)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of Go's syntax. Raises PatternError."""
    try:
        return re.compile("".join(_Reader(pattern).pieces()))
    except (re.error, OverflowError) as error:  # of Go's syntax, but beyond Python's
        raise PatternError(str(error), pattern) from None


@lru_cache(None)
def ranges(category: str, others: bool) -> str:
    """The characters of one of Unicode's general categories, or all `others`, as the inside of a class."""
    import unicodedata  # half a megabyte, for patterns that speak of more than ASCII
    found, begin = "", None
    for code in range(0x110001):
        inside = code <= 0x10ffff and unicodedata.category(chr(code)).startswith(category) != others
        if inside and begin is None:
            begin = code
        elif not inside and begin is not None:
            found += f"\\U{begin:08x}-\\U{code - 1:08x}"
            begin = None
    return found


class _Reader:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.groups: list[list[str]] = [[""]]  # that are open: how each begins, then the flags set inside it

    def pieces(self) -> Iterator[str]:
        """The pattern in Python's syntax. Raises PatternError."""
        pattern, repeated, ready = self.pattern, "", False  # the operator before; whether there is what to repeat
        while self.at < len(pattern):
            sign = pattern[self.at]
            if sign in "*+?" or (sign == "{" and _REPEAT.match(pattern, self.at)):
                operator = self._operator()
                if not ready:
                    raise PatternError("missing argument to repetition operator", operator)
                if repeated:
                    raise PatternError("invalid nested repetition operator", repeated + operator)
                repeated = operator
                yield operator
                continue
            repeated, ready = "", sign not in "(|"
            yield self._piece(sign)
        if len(self.groups) > 1:
            raise PatternError("missing closing )", pattern)
        yield ")" * (len(self.groups[0]) - 1)

    def _piece(self, sign: str) -> str:
        if sign == "\\":
            return self._escape()
        if sign == "[":
            return self._class()
        if sign == "(":
            return self._group()
        self.at += 1
        if sign == "|":  # flags hold for what comes after it, too
            flags = self.groups[-1][1:]
            return ")" * len(flags) + "|" + "".join(flags)
        if sign == ")":
            if len(self.groups) == 1:
                raise PatternError("unexpected )", self.pattern)
            return ")" * len(self.groups.pop())
        if sign in "^$":
            return f"(?:{sign})" if self._lines() or sign == "^" else _PLACES["z"]
        return "\\" + sign if sign in "{}]" else sign

    def _lines(self) -> bool:
        """Whether ^ and $ mean those of lines."""
        last = next((flags for group in reversed(self.groups) for flags in reversed(group) if "m" in flags), "-m")
        return "m" in last.partition("-")[0]

    def _operator(self) -> str:
        begin, found = self.at, _REPEAT.match(self.pattern, self.at)
        self.at = found.end() if found else self.at + 1
        if found:
            low, high = int(found[1]), int(found[2]) if found[2] else None
            if low > MOST or (high is not None and not low <= high <= MOST):
                raise PatternError("invalid repeat count", found[0])
        if self.pattern.startswith("?", self.at):
            self.at += 1
        return self.pattern[begin:self.at]

    def _group(self) -> str:
        pattern, begin = self.pattern, self.at
        if not pattern.startswith("(?", begin):
            self.at, opening = begin + 1, "("
        elif pattern.startswith(("(?P<", "(?<"), begin):
            found = _NAMED.match(pattern, begin)
            if found is None or not re.fullmatch(r"\w+", found[1], re.ASCII):
                raise PatternError("invalid named capture", pattern[begin:] if found is None else found[0])
            self.at, opening = found.end(), "("
        else:
            found = _FLAGS.match(pattern, begin)
            if found is None:
                bad = re.match(r"\(\?[imsU]*(?:-[imsU]*)?", pattern[begin:])
                raise PatternError("missing argument to repetition operator" if bad is None else
                            "invalid or unsupported Perl syntax", pattern[begin:begin + (bad.end() if bad else 0) + 1])
            self.at = found.end()
            on, off = found[1].replace("U", ""), (found[2] or "").replace("U", "")
            opening = f"(?{on}{'-' + off if off else ''}:"
            if found[3] == ")":
                self.groups[-1].append(opening)
                return opening
        self.groups.append([opening])
        return opening

    def _escape(self) -> str:
        """What a backslash begins, outside a class."""
        found = self._escaped()
        if found is not None:
            return f"[{found[0]}]" if found[1] is None else found[0]
        begin, pattern = self.at, self.pattern
        sign = pattern[begin + 1:begin + 2]
        self.at += 2
        if sign in _PLACES:
            return _PLACES[sign]
        if sign == "Q":
            quoted, end, _ = pattern[self.at:].partition(r"\E")
            self.at += len(quoted) + len(end)
            return re.escape(quoted)
        raise self._unknown(begin)

    def _unknown(self, begin: int) -> PatternError:
        part = self.pattern[begin:begin + 2]
        return PatternError("trailing backslash at end of expression", "") if len(part) == 1 else PatternError(
            "invalid escape sequence", part)

    def _escaped(self) -> Member | None:
        """What may be escaped in a class, too. None: something else."""
        begin, pattern = self.at, self.pattern
        sign = pattern[begin + 1:begin + 2]
        if found := _CODE.match(pattern, begin + 1):
            code = int(found[3], 8) if found[3] else int(found[1] or found[2], 16)
            if code <= 0x10ffff:
                self.at = found.end()
                return re.escape(chr(code)), code
        self.at += 2
        if sign and sign in "pP":
            kind = _KIND.match(pattern, begin + 1)
            name = kind[3] or kind[4] if kind else ""
            if kind is None or not _CATEGORY.fullmatch(name):
                raise PatternError("invalid character class range", "\\" + (kind[0] if kind else sign))
            self.at = kind.end()
            return ranges(name, (sign == "P") != bool(kind[2])), None
        if sign in _CLASSES or sign in _NEGATED:
            return {**_CLASSES, **_NEGATED}[sign], None
        if sign in _SIGNS:
            return f"\\{sign}", ord(_SIGNS[sign])
        if sign and sign.isascii() and not sign.isalnum():
            return re.escape(sign), ord(sign)
        self.at = begin
        return None

    def _class(self) -> str:
        pattern, begin = self.pattern, self.at
        self.at += 1
        text = "["
        if pattern.startswith("^", self.at):
            text, self.at = "[^", self.at + 1
        members = 0
        while not (pattern.startswith("]", self.at) and members):
            if self.at >= len(pattern):
                raise PatternError("missing closing ]", pattern[begin:])
            members += 1
            text += self._range(begin)
        self.at += 1
        return text + "]"

    def _range(self, begin: int) -> str:
        """A member of a class, or all between two."""
        pattern, start = self.pattern, self.at
        if pattern.startswith("[:", start) and (end := pattern.find(":]", start)) >= 0:
            if (kind := _POSIX.get(pattern[start + 2:end])) is None:
                raise PatternError("invalid character class range", pattern[start:end + 2])
            self.at = end + 2
            return kind
        text, code = self._member(begin)
        if code is None or not pattern.startswith("-", self.at) or pattern[self.at + 1:self.at + 2] in ("", "]"):
            return text
        self.at += 1
        escaped = self.at
        last, high = self._member(begin)
        if high is None:
            raise PatternError("invalid escape sequence", pattern[escaped:self.at])
        if high < code:
            raise PatternError("invalid character class range", pattern[start:self.at])
        return f"{text}-{last}"

    def _member(self, begin: int) -> Member:
        sign = self.pattern[self.at]
        if sign != "\\":
            self.at += 1
            return ("\\" + sign if sign in "[]^-&|~" else sign), ord(sign)
        found = self._escaped()
        if found is None:
            raise self._unknown(self.at) if self.at + 1 < len(self.pattern) else PatternError(
                "missing closing ]", self.pattern[begin:])
        return found
