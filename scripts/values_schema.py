"""Write descriptions and defaults of values.yaml into values.schema.json.

An editor shows them from there.

    python scripts/values_schema.py      # each chart; `make docs` does

Types, ranges and the like are written in the schema by hand and kept; those of TensorFlow Serving's flags are from the
chart's table of them, files/server-flags.yaml.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHARTS = Path(__file__).resolve().parents[1] / "charts"
WIDTH = 120

Schema = dict[str, Any]
KeyPath = tuple[str, ...]


def generate(chart: Path) -> str:
    """Return the text that the chart's values.schema.json is to have."""
    schema = json.loads((chart / "values.schema.json").read_text())
    for path, description, default in documented((chart / "values.yaml").read_text()):
        node = node_at(schema, path)
        keywords = {key: value for key, value in node.items() if key not in {"description", "default"}}
        node.clear()
        node |= {"description": description, **keywords, "default": default}
    flags = chart / "files" / "server-flags.yaml"
    if flags.exists():
        node_at(schema, ("server", "flags"))["properties"] = flag_schemas(yaml.safe_load(flags.read_text()))
    without_unused_definitions(schema)
    return dump(schema) + "\n"


def documented(text: str) -> Iterator[tuple[KeyPath, str, Any]]:
    """Path, description and default of each value with a `# --` comment.

    It is the form that helm-docs reads.
    """
    lines = text.splitlines()

    def walk(mapping: yaml.MappingNode, values: dict[str, Any], above: KeyPath) -> Iterator[tuple[KeyPath, str, Any]]:
        for key, child in mapping.value:
            path, value = (*above, key.value), values[key.value]
            if description := comment_above(lines, key.start_mark.line):
                yield path, description, value
            if isinstance(child, yaml.MappingNode):
                yield from walk(child, value, path)

    yield from walk(yaml.compose(text), yaml.safe_load(text), ())


def comment_above(lines: list[str], line: int) -> str | None:
    """Return the comment that ends on the line before, without its type, or None."""
    found: list[str] = []
    while line and (match := re.match(r"\s*# ?(-- )?(.*)", lines[line - 1])):
        line -= 1
        found.insert(0, match[2])
        if match[1]:
            return re.sub(r"^\([\w ]+\) ", "", " ".join(found))
    return None


def node_at(schema: Schema, path: KeyPath) -> Schema:
    """Return the schema of one value; a shared definition is copied.

    Each value has its own description.
    """
    node = schema
    for key in path:
        if "$ref" in node:
            shared = schema["$defs"][node.pop("$ref").removeprefix("#/$defs/")]
            node |= copy.deepcopy(shared)
        if key not in node.get("properties", {}):
            sys.exit(f"values.schema.json has no {'.'.join(path)}: give it a type there")
        node = node["properties"][key]
    return node


def flag_schemas(table: dict[str, Schema]) -> dict[str, Schema]:
    """Return the schema of each flag of server.flags; null unsets one."""
    schemas = {}
    for flag, about in table.items():
        if "value" in about:
            continue
        since = f"; since TensorFlow Serving {about['since']}" if "since" in about else ""
        since += "; of the portable server only" if "portable" in about else ""
        schema = {key: value for key, value in about.items() if key not in {"since", "portable"}}
        schema["description"] += since
        if "type" in schema:
            schema["type"] = [schema["type"], "null"]
        else:
            schema["enum"] = [*schema["enum"], None]
        schemas[flag] = {"description": schema.pop("description"), **schema}
    return schemas


def without_unused_definitions(schema: Schema) -> None:
    """Remove each definition that nothing refers to any longer."""
    while unused := [name for name in schema.get("$defs", {}) if f'"#/$defs/{name}"' not in json.dumps(schema)]:
        for name in unused:
            del schema["$defs"][name]


def dump(node: object, indent: str = "", before: int = 0) -> str:
    """Return JSON with one line for whatever fits on it.

    ``before`` is the length of the key in front.
    """
    flat = json.dumps(node, ensure_ascii=False)
    if len(indent) + before + len(flat) + 1 <= WIDTH or not isinstance(node, dict | list) or not node:
        return flat
    deeper = indent + "  "
    if isinstance(node, dict):
        names = {key: f"{json.dumps(key, ensure_ascii=False)}: " for key in node}
        parts = [names[key] + dump(value, deeper, len(names[key])) for key, value in node.items()]
        opening, closing = "{}"
    else:
        parts = [dump(value, deeper) for value in node]
        opening, closing = "[]"
    return f"{opening}\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}{closing}"


def main() -> int:
    for chart in sorted(CHARTS.iterdir()):
        (chart / "values.schema.json").write_text(generate(chart))
        print(f"{chart.name}/values.schema.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
