"""Traces and explanations as HTML for notebooks: no script, no link, and no text of a corpus that is anything but text."""

import html
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trackstar.trace import Explanation, RankedExample, TokenContributions, Trace

_LONGEST_TEXT = 1000
"""Characters of a text in a table."""
_LONGEST_SHADED = 20_000
"""Characters of a text that is shaded token by token."""
_STYLE = (
    "<style>.trackstar td,.trackstar th{text-align:left;vertical-align:top}"
    ".trackstar .text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}"
    ".trackstar .number{font-variant-numeric:tabular-nums;white-space:nowrap}</style>"
)
_TOWARDS, _AGAINST = "46,125,50", "198,40,40"
"""Colours of contributions that raise and lower a score."""
_KEPT_CONTROLS = "\t\n"


def of_trace(trace: "Trace") -> str:
    """A table of proponents, and of opponents where there are some."""
    query = trace.query
    head = (
        f"<p><b>{plain(query.prompt)}</b> → <b>{plain(query.target)}</b><br>loss {trace.loss:.3f} nats over "
        f"{trace.num_target_tokens:,} tokens; {trace.num_examples:,} examples, version {trace.version}, {trace.seconds:.2f} s</p>"
    )
    tables = _table("proponents", trace.proponents)
    if trace.opponents:
        tables += _table("opponents", trace.opponents)
    return f'<div class="trackstar">{_STYLE}{head}{tables}</div>'


def of_explanation(explanation: "Explanation") -> str:
    """The document and the query, shaded, and the layers."""
    example = explanation.example
    note = "" if explanation.as_encoded else " (not exactly what was encoded)"
    note += f"; of the encoding as the index stores it {example.score:.4f}"
    layers = "".join(
        f'<tr><td>layer {part.layer} {part.kind}</td><td class="number">{part.contribution:+.4f}</td></tr>'
        for part in explanation.layers
    )
    return (
        f'<div class="trackstar">{_STYLE}<p>{plain(example.example_id)}: score {explanation.score:.4f}{note}</p>'
        f"<p>document</p>{_shaded(explanation.document)}<p>query</p>{_shaded(explanation.query)}"
        f"<table><tr><th>part</th><th>contribution</th></tr>{layers}</table></div>"
    )


def plain(text: str, longest: int = _LONGEST_TEXT) -> str:
    """A text that can do nothing in a page but be read.

    Markup is escaped. Characters that show nothing or turn the reading direction of what follows (controls, bidirectional marks,
    halves of surrogate pairs) become their numbers, and the text keeps its direction to itself.
    """
    shown = "".join(map(_visible, text[:longest]))
    more = f"<i> … {len(text):,} characters</i>" if len(text) > longest else ""
    return f'<bdi class="text">{html.escape(shown)}</bdi>{more}'


def _visible(character: str) -> str:
    if character in _KEPT_CONTROLS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return character
    return f"⟨U+{ord(character):04X}⟩"


def _table(name: str, examples: "tuple[RankedExample, ...]") -> str:
    rows = "".join(
        f'<tr><td class="number">{example.rank}</td><td class="number">{example.score:.4f}</td>'
        f"<td>{plain(example.example_id)}</td><td>{plain(example.text)}</td></tr>"
        for example in examples
    )
    return f"<table><tr><th></th><th>score</th><th>{name}</th><th>text</th></tr>{rows}</table>"


def _shaded(side: "TokenContributions") -> str:
    """The text with each token's background as strong as its contribution."""
    segments = side.segments()
    if not side.text or not segments:
        return plain(" ".join(side.pieces))
    largest = max(abs(segment.contribution) for segment in segments) or 1.0
    parts: list[str] = []
    at = 0
    for segment in segments:
        if segment.end > _LONGEST_SHADED:
            break
        parts.append(html.escape("".join(map(_visible, side.text[at : segment.start]))))
        colour = _TOWARDS if segment.contribution >= 0 else _AGAINST
        inside = html.escape("".join(map(_visible, side.text[segment.start : segment.end])))
        strength = abs(segment.contribution) / largest
        parts.append(
            f'<span style="background:rgba({colour},{strength:.2f})" title="{segment.contribution:+.4f}">{inside}</span>'
        )
        at = segment.end
    rest = side.text[at:]
    more = f"<i> … {len(side.text):,} characters</i>" if len(rest) > _LONGEST_TEXT else ""
    parts.append(html.escape("".join(map(_visible, rest[:_LONGEST_TEXT]))))
    return f'<bdi class="text">{"".join(parts)}</bdi>{more}'
