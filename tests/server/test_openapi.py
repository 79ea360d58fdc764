"""The API's document against the routes, and real answers against the document."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import QUERY, Running
from trackstar.server import openapi
from trackstar.server.app import routes
from trackstar.server.limits import Limits

DOCUMENT = openapi.document()
ROOT = Path(__file__).parents[2]
METHODS = {"get", "post", "delete", "put", "patch", "head", "options"}


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, found) for path, item in DOCUMENT["paths"].items() for method, found in item.items()]


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        kind, name = re.fullmatch(r"#/components/(schemas)/(\w+)", schema["$ref"]).groups()  # type: ignore[union-attr]
        schema = DOCUMENT["components"][kind][name]
    return schema


def errors(schema: dict[str, Any], value: Any, where: str = "") -> list[str]:
    """Where a value is not what a schema says; fields that it does not tell of count as errors, too."""
    schema = resolve(schema)
    if "anyOf" in schema:
        tried = [errors(option, value, where) for option in schema["anyOf"]]
        return [] if [] in tried else [error for found in tried for error in found]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is none of {schema['enum']}"]
    kinds: dict[str, Any] = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
        "null": type(None),
    }
    kind = schema["type"]
    if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{where}: {value!r} is no {kind}"]
    if kind == "array":
        return [e for i, item in enumerate(value) for e in errors(schema["items"], item, f"{where}[{i}]")]
    if kind == "object" and "properties" in schema:
        properties = schema["properties"]
        found = [f"{where}.{name} is missing" for name in schema["required"] if name not in value]
        found += [f"{where}.{name} is not in the document" for name in value if name not in properties]
        return found + [
            e for n, v in value.items() if n in properties for e in errors(properties[n], v, f"{where}.{n}")
        ]
    return []


def test_every_route_is_in_the_document_and_back(server: Running) -> None:
    served = {(method, route.path) for route in routes(server.service) for method in route.methods - {"HEAD"}}
    assert served == {(method.upper(), path) for method, path, _ in operations()}
    for method, path, _ in operations():  # and the server that runs knows them
        answer = server.call("OPTIONS", path.replace("{id}", "x"))
        assert answer.status == 405
        assert method.upper() in answer.headers["allow"].split(", ")


def test_it_is_served(server: Running) -> None:
    answer = server.call("GET", "/api/v1/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == json.loads(json.dumps(DOCUMENT))


def test_its_structure() -> None:
    assert re.fullmatch(r"3\.1\.\d", DOCUMENT["openapi"])
    assert {"title", "version"} <= set(DOCUMENT["info"])
    ids = [found["operationId"] for _, _, found in operations()]
    assert len(ids) == len(set(ids)) >= 10
    for method, path, found in operations():
        assert method in METHODS
        assert found["summary"]
        named = {parameter["name"] for parameter in found.get("parameters", []) if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
        assert any(status.startswith("2") for status in found["responses"])
        for answer in found["responses"].values():
            assert answer["description"]
        assert ("requestBody" in found) == (method == "post")


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert used | {"TraceState"} == set(DOCUMENT["components"]["schemas"])  # TraceState: the data of events
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        assert set(schema["required"]) <= set(schema["properties"])
        for field, found in schema["properties"].items():
            assert found.get("description") or "$ref" in found, f"{name}.{field}"


def schema_of(method: str, path: str, status: int) -> dict[str, Any]:
    content = DOCUMENT["paths"][path][method]["responses"][str(status)]["content"]
    return content["application/json"]["schema"]


@pytest.mark.parametrize("opponents", [False, True])
def test_answers_are_what_the_document_says(server: Running, opponents: bool) -> None:
    asked = server.call("POST", "/api/v1/traces", {**QUERY, "opponents": opponents})
    assert errors(schema_of("post", "/api/v1/traces", 202), asked.json) == []
    assert "Location" in DOCUMENT["paths"]["/api/v1/traces"]["post"]["responses"]["202"]["headers"]
    trace = server.ended(asked.json["id"])
    assert errors(schema_of("get", "/api/v1/traces/{id}", 200), trace) == []
    assert trace["result"] is not None
    listed = server.get("/traces")
    assert errors(schema_of("get", "/api/v1/traces", 200), listed) == []
    cancelled = server.call("DELETE", f"/api/v1/traces/{trace['id']}").json
    assert errors(schema_of("delete", "/api/v1/traces/{id}", 200), cancelled) == []
    explained = server.call("POST", f"/api/v1/traces/{trace['id']}/explanations", {"ranks": [1, 3]})
    assert errors(schema_of("post", "/api/v1/traces/{id}/explanations", 200), explained.json) == []
    completed = server.call("POST", "/api/v1/completions", {"prompt": "Rome is"})
    assert errors(schema_of("post", "/api/v1/completions", 200), completed.json) == []
    assert errors(schema_of("get", "/api/v1/info", 200), server.get("/info")) == []
    assert errors(schema_of("get", "/api/v1/healthz", 200), server.get("/healthz")) == []
    with server.events(trace["id"]) as events:
        assert errors({"$ref": "#/components/schemas/TraceState"}, next(events)[1]) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/v1/traces", {"prompt": 1}, 422),
        ("POST", "/api/v1/completions", {"prompt": "x" * 300_000}, 413),
        ("GET", "/api/v1/traces/x", None, 404),
        ("DELETE", "/api/v1/traces/x", None, 404),
        ("GET", "/api/v1/traces/x/events", None, 404),
        ("POST", "/api/v1/traces/x/explanations", {"ranks": [1]}, 404),
        ("POST", "/api/v1/traces/x/explanations", {"ranks": []}, 422),
        ("POST", "/api/v1/completions", {"prompt": "x", "max_new_tokens": 100_000}, 422),
        ("POST", "/api/v1/completions", {"prompt": ""}, 422),
    ],
)
def test_errors_are_what_the_document_says(server: Running, method: str, path: str, body: Any, status: int) -> None:
    answer = server.call(method, path, body)
    assert answer.status == status
    documented = re.sub(r"/traces/x", "/traces/{id}", path)
    assert errors(schema_of(method.lower(), documented, status), answer.json) == []


def test_the_manual_names_everything() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for method, path, _ in operations():
        assert f"`{method.upper()} {path}`" in text
    for name in Limits.__dataclass_fields__:
        assert f"`--{name}`" in text
    sources = "\n".join(path.read_text() for path in (ROOT / "trackstar" / "server").glob("*.py"))
    codes = re.findall(r'ApiError\(\s*(?:error.status_code|\d+),\s*"(\w+)"|cls\(\d+, "(\w+)"', sources)
    assert len(codes) > 10
    for code in {one or other for one, other in codes} | set(re.findall(r'_fail\(job, "(\w+)"', sources)):
        assert f"`{code}`" in text, code


def test_the_checker_finds_errors() -> None:
    schema = schema_of("get", "/api/v1/healthz", 200)
    assert errors(schema, {"status": "ok"}) == []
    for wrong in ({}, {"status": "bad"}, {"status": None}, {"status": "ok", "more": 1}, []):
        assert errors(schema, wrong) != []
