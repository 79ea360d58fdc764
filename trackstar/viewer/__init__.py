"""The page on results files: `trackstar view` serves it, `--export` writes it as one file, `trackstar serve` adds tracing.

rows.py       results files → light rows for the list, records on demand
export.py     one self-contained HTML file
app.py        the view server's answers
assets.py     the page's files, and what every answer's headers say
listening.py  a server on a socket, until it is told to end
static/       the page: plain JavaScript modules, no build, no dependency
"""
