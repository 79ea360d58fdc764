"""Results files made for tests of the page."""

import json
import random
from pathlib import Path
from typing import Any

Line = dict[str, Any]

CITIES = ["Oslo", "Lima", "Cairo", "Quito", "Hanoi", "Accra", "Dakar", "Sofia"]
LANDS = ["Norway", "Peru", "Egypt", "Ecuador", "Vietnam", "Ghana", "Senegal", "Bulgaria"]


def write(path: Path, lines: list[Line]) -> str:
    """Writes JSONL and returns its name."""
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return str(path)


def minimal(**fields: Any) -> Line:
    """The least that a line of results holds."""
    return {"inputs_plaintext": "The capital of Norway is", "targets_plaintext": "Oslo", **fields}


def line(number: int, seed: int = 0, depth: int = 12, marks: bool = True) -> Line:
    """One query of a made file; the same number asks the same in every seed, with another ranking."""
    chance = random.Random(f"{seed}/{number}")
    city, land = CITIES[number % 8], LANDS[number % 8]
    pool = chance.sample(range(40), depth)
    scores = sorted((chance.uniform(0.0, 0.9) for _ in pool), reverse=True)
    made = {
        "example_id": f"q{number}",
        "query_set": "made",
        "inputs_plaintext": f"Question {number}: the capital of {land} is",
        "targets_plaintext": f" {city}",
        "proponents": [f"Passage {n} says that {city} lies in {land}." for n in pool],
        "proponent_ids": [f"c4_{n}" if n % 2 else f"shards/part-{n % 3}.jsonl.gz:{n * 1000}#{n % 4}" for n in pool],
        "proponent_scores": scores,
        "opponents": [f"Opponent {n} of {land}." for n in range(3)],
        "opponent_ids": [f"o{n}" for n in range(3)],
        "opponent_scores": [-0.3, -0.2, -0.1],
        "fact_id": f"f{number}",
        "relation": f"P{number % 5}",
        "frequency": number * 3,
        "8b_confidence": round(chance.random(), 3),
        "answered": number % 3 == 0,
        "8b_generations": [city, land],
    }
    if marks:
        made["proponent_correct"] = [chance.random() < 0.12 for _ in pool]
    return made


def lines(count: int, seed: int = 0, **settings: Any) -> list[Line]:
    """A made file's lines."""
    return [line(number, seed, **settings) for number in range(count)]


HOSTILE_TEXTS = [
    "</script><script>window.hacked = 1</script>",
    "<!--<script>window.hacked = 2</script>",
    '<img src=x onerror="window.hacked = 3">',
    "<svg onload=window.hacked=4>",
    "\"'><iframe srcdoc='<script>parent.hacked = 5</script>'>",
    "javascript:window.hacked=6//",
    "{{constructor.constructor('window.hacked = 7')()}} ${window.hacked = 8} `",
    "__proto__",
    "\u202ereversed\u202c \u2066isolated\u2069 \u0000\u0007\u001b[31m \u200b\ufeff\u00ad \u2028\u2029",
    "half \ud800 and \udc00 of pairs",
    "a" + "\u0301" * 500 + " stacked marks",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea mixed \u6f22\u5b57",
    "a family of one: \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "]]>&lt;b&gt;&#60;u&#62;",
]


def hostile() -> list[Line]:
    """Lines whose every text tries to be something else."""
    made = []
    for number, text in enumerate(HOSTILE_TEXTS):
        made.append(
            {
                "example_id": f"{text}{number}",
                "query_set": text,
                "inputs_plaintext": text,
                "targets_plaintext": text,
                "proponents": [text, *HOSTILE_TEXTS],
                "proponent_ids": [f"{text}{n}" for n in range(len(HOSTILE_TEXTS) + 1)],
                "proponent_scores": [0.5] * (len(HOSTILE_TEXTS) + 1),
                "relation": text,
                text: text,
                "__proto__": {"polluted": True},
                "constructor": text,
                "proponent_correct": [True] + [False] * len(HOSTILE_TEXTS),
            }
        )
    return made
