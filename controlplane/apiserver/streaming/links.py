"""Links in the web pages that the proxies bring: a page's `/style.css` lies below the proxy's own path.

Owns which attributes of HTML hold addresses, and what becomes of an address. Everything but those values passes byte
for byte, whatever the page's encoding. Pure. Called by `forward`.

Upstream: k8s.io/apimachinery/pkg/util/proxy/transport.go.
"""

from __future__ import annotations

import re
from html import escape, unescape
from html.parser import HTMLParser
from urllib.parse import urlsplit

ATTRIBUTES = {
    "a": ("href",), "applet": ("codebase",), "area": ("href",), "audio": ("src",), "base": ("href",),
    "blockquote": ("cite",), "body": ("background",), "button": ("formaction",), "command": ("icon",),
    "del": ("cite",), "embed": ("src",), "form": ("action",), "frame": ("longdesc", "src"), "head": ("profile",),
    "html": ("manifest",), "iframe": ("longdesc", "src"), "img": ("longdesc", "src", "usemap"),
    "input": ("src", "formaction", "usemap"), "ins": ("cite",), "link": ("href",),
    "object": ("classid", "codebase", "data", "usemap"), "q": ("cite",), "script": ("src",), "source": ("src",),
    "video": ("poster", "src")}
_ATTRIBUTE = re.compile(r"""(?P<before>[\s"'/](?P<name>[^\s"'>/=]+)\s*=\s*)(?P<value>"[^"]*"|'[^']*'|[^\s"'>]+)""")


def moved(address: str, root: str, hosts: tuple[str, ...]) -> str:
    """Where `address` of a backend's page is found from outside: absolute paths of the backend itself, by which of
    `hosts` it may be called, are put below `root`; all others stay."""
    try:
        url = urlsplit(address)
    except ValueError:
        return address
    if (url.netloc and url.netloc not in hosts) or not url.path.startswith("/"):
        return address
    path = url.path if url.path.startswith(root + "/") else root + url.path
    return url._replace(scheme="", netloc="", path=path).geturl()


def rewritten(page: bytes, root: str, hosts: tuple[str, ...]) -> bytes:
    """The page with every link of the backend put below `root`."""
    text = page.decode("latin-1")  # bytes for bytes: markup is ASCII in every encoding a page may have
    tags = _Tags(text)
    pieces, end = [], 0
    for start, raw, names in tags.found:
        pieces += [text[end:start], _tag(raw, names, root, hosts)]
        end = start + len(raw)
    return "".join([*pieces, text[end:]]).encode("latin-1")


def _tag(raw: str, names: tuple[str, ...], root: str, hosts: tuple[str, ...]) -> str:
    def attribute(match: re.Match[str]) -> str:
        if match["name"].lower() not in names:
            return match[0]
        value, quote = match["value"], match["value"][0] if match["value"][0] in "\"'" else ""
        old = unescape(value.strip(quote) if quote else value)
        new = moved(old, root, hosts)
        return match[0] if new == old else f"{match['before']}{quote or chr(34)}{escape(new)}{quote or chr(34)}"
    return _ATTRIBUTE.sub(attribute, raw)


class _Tags(HTMLParser):
    """The opening tags that may hold links: (offset, text of the tag, attributes to look at)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[tuple[int, str, tuple[str, ...]]] = []
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        raw, names = self.get_starttag_text(), ATTRIBUTES.get(tag)
        if raw and names:
            line, column = self.getpos()
            self.found.append((self._lines[line - 1] + column, raw, names))
