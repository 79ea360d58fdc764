"""The page and its data as one HTML file that opens from disk: no server, no network, nothing beside it.

Modules are put one after the other into one inline script, imports taken out; the data is a block of JSON in which nothing
can end the block. The page's policy names the hashes of that script and of the style: nothing else runs.
"""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trackstar import storage
from trackstar.errors import TrackStarError
from trackstar.viewer import assets
from trackstar.viewer.app import FORMAT
from trackstar.viewer.rows import Run, to_json

LARGE = 50_000_000
"""Bytes from which on a page opens slowly."""

ENTRY = "main.js"

_IMPORT = re.compile(r'^import\s(?:[^;"]*\sfrom\s)?"\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let)\b)", re.MULTILINE)
_POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")[^"]*(">)')
_STYLE = '<link rel="stylesheet" href="style.css">'
_SCRIPT = f'<script type="module" src="{ENTRY}"></script>'
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        num_bytes: Of the file.
        num_queries: Of all runs.
        cut: Queries of which the page holds fewer proponents or opponents than the results.
    """

    num_bytes: int
    num_queries: int
    cut: int


def write_page(uri: str, runs: Sequence[Run], max_proponents: int | None = None) -> Written:
    """Writes the page; the file appears when it is complete.

    Args:
        uri: Where to; local or in a store.
        runs: What it shows.
        max_proponents: Proponents, and opponents, of each query that it holds; None: all. Metrics stay those of all.
    """
    cut = 0

    def pieces() -> Iterator[bytes]:
        nonlocal cut
        head, tail = page_around_data()
        yield head.encode()
        yield f'{{"format":{FORMAT},"runs":['.encode()
        for place, run in enumerate(runs):
            known = {"name": run.name, "source": run.uri, "rows": run.rows}
            yield (("," if place else "") + _data(known)[:-1] + ',"records":[').encode("utf-8", "backslashreplace")
            for number in range(len(run.rows)):
                record = run.record(number)
                kept = record if max_proponents is None else shortened(record, max_proponents)
                cut += kept is not record
                yield (("," if number else "") + _data(kept)).encode("utf-8", "backslashreplace")
            yield b"]}"
        yield b"]}"
        yield tail.encode()

    num_bytes = 0
    with storage.staged(uri) as path, path.open("wb") as file:
        for piece in pieces():
            num_bytes += file.write(piece)
    return Written(num_bytes, sum(len(run.rows) for run in runs), cut)


def shortened(record: Mapping[str, Any], count: int) -> Mapping[str, Any]:
    """The record with the first `count` of its proponents and opponents, in every list that goes with them."""
    lengths = {end: len(record[f"{end}s"]) for end in ("proponent", "opponent")}
    if all(length <= count for length in lengths.values()):
        return record

    def is_of(name: str, value: Any) -> bool:
        return isinstance(value, list) and any(
            (name == f"{end}s" or name.startswith(f"{end}_")) and len(value) == length
            for end, length in lengths.items()
        )

    return {name: value[:count] if is_of(name, value) else value for name, value in record.items()}


def page_around_data() -> tuple[str, str]:
    """What stands before the data and what after it."""
    found = assets.files()
    style, script = found["style.css"].text, one_script({name: asset.text for name, asset in found.items()})
    page = found["index.html"].text
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    page, replaced = _POLICY.subn(lambda match: match[1] + policy + match[2], page)
    if replaced != 1 or page.count(_STYLE) != 1 or page.count(_SCRIPT) != 1:
        raise TrackStarError("index.html lacks its policy, style.css or main.js: the installation is damaged")
    page = page.replace(_STYLE, f"<style>{style}</style>")
    head, tail = page.split(_SCRIPT)
    opening = '<script type="application/json" id="trackstar-data">'
    return head + opening, f'</script>\n<script type="module">{script}</script>{tail}'


def one_script(modules: Mapping[str, str]) -> str:
    """The entry's module and all that it imports, each after what it imports, as one script.

    Args:
        modules: File name → text.

    Raises:
        TrackStarError: a module that is not there, or text that would end the script.
    """
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        if name not in modules:
            raise TrackStarError(f"{name}: the page's file is missing; the installation is damaged")
        done[name] = ""  # Before its imports: a circle would not end.
        for imported in _IMPORT.findall(modules[name]):
            add(imported)
        del done[name]
        done[name] = _EXPORT.sub("", _IMPORT.sub("", modules[name]))

    add(ENTRY)
    script = "\n" + "\n".join(done.values())
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise TrackStarError("the page's script holds text that would end it")
    return script


def _data(value: Any) -> str:
    return to_json(value).translate(_ESCAPES)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
