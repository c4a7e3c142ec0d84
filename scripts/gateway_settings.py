"""Generate documents and chart files from the settings (rows of settings.py).

    python scripts/gateway_settings.py      # `make docs` does

That is the table in gateway/README.md, the chart's templates/gateway/_env.tpl, and the types of the settings' values in
its values.schema.json. Descriptions and defaults of values are the chart's own, from its values.yaml.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from clothing_contract import Input, Output
from clothing_gateway.settings import EXTRA_ENV, ROWS, Setting
from values_schema import dump

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "clothing-classifier"
README = ROOT / "gateway" / "README.md"
ENV = CHART / "templates" / "gateway" / "_env.tpl"
SCHEMA = CHART / "values.schema.json"

BEGIN = "Generated from gateway/src/clothing_gateway/settings.py by `make docs`: change it there"
END = "End of what is generated"

# Settings of the model's contract. Its size may be an integer in the values, which a text's type doesn't say.
CONTRACT = {field.name for part in (Input, Output) for field in fields(part)} - {"image_size"}


def generate() -> dict[Path, str]:
    """Return the text that each file is to have."""
    return {
        README: in_region(README.read_text(), f"<!-- {BEGIN}. -->\n", table(), f"\n<!-- {END}. -->"),
        ENV: in_region(ENV.read_text(), f"{{{{- /* {BEGIN}. */ -}}}}\n", template(), f"\n{{{{- /* {END}. */ -}}}}"),
        SCHEMA: schema(),
    }


def in_region(text: str, begin: str, content: str, end: str) -> str:
    """Return the text with other content between two lines."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + content + end + after


def table() -> str:
    """Return the table of settings, for people."""
    lines = ["| variable | default | unit | chart value | what and why |", "|---|---|---|---|---|"]
    for row in ROWS:
        default = f"`{row.default}`" if row.default else row.shown_default
        chart = "" if row.chart == EXTRA_ENV else f"`{row.chart}`"
        lines.append(f"| `{row.variable}` | {default} | {row.unit} | {chart} | {row.reason} |")
    return "\n".join(lines)


def template() -> str:
    """Return the chart's variables and their texts, and their values' paths."""
    given = [row for row in ROWS if row.template or row.chart != EXTRA_ENV]
    lines = ['{{- define "clothing-classifier.gateway.env" -}}']
    lines += ['{{- $tls := include "clothing-classifier.gateway.tlsSecretName" . | empty | not -}}']
    lines += ["{{- $settings := list"]
    lines += [f'  (list "{row.variable}" {expression(row)})' for row in given]
    lines[-1] += " -}}"
    variables = 'include "clothing-classifier.gateway.variables" (list $settings .Values.gateway.extraEnv)'
    lines += [f"{{{{- {variables} | trim -}}}}"]
    lines += ["{{- end -}}", ""]
    lines += ['{{- define "clothing-classifier.gateway.valueOf" -}}']
    lines += [f"{row.variable}: {row.chart}" for row in given if row.chart != EXTRA_ENV]
    return "\n".join([*lines, "{{- end -}}"])


def expression(row: Setting) -> str:
    """Return the template that gives a setting's text."""
    text = row.template or row.kind.template.format(f".Values.{row.chart}")
    return f"({text})" if " " in text else text


def schema() -> str:
    """Return the chart's schema with the settings' types."""
    text: dict[str, Any] = json.loads(SCHEMA.read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for row in ROWS:
        is_typed = row.chart.startswith("gateway.") or row.name in CONTRACT
        if row.template or not is_typed or row.chart == EXTRA_ENV:
            continue
        *above, last = row.chart.split(".")
        node, value = text, values
        for key in above:
            node, value = node["properties"][key], value[key]
        old = node["properties"].get(last, {})
        kept = [{key: old[key]} if key in old else {} for key in ("description", "default")]
        types = dict(row.kind.schema)
        if value[last] is None:
            types["type"] = [types["type"], "null"]
        node["properties"][last] = kept[0] | types | kept[1]
    return dump(text) + "\n"


def main() -> int:
    for file, text in generate().items():
        file.write_text(text)
        print(f"{file.relative_to(ROOT)}: {len(ROWS)} settings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
