"""The frames as docs/asyncapi.yaml describes them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, FormatChecker

DOCUMENT = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text())
    return found


@lru_cache(maxsize=8)
def validator(name: str) -> Draft202012Validator:
    """A validator for one of the schemas; its references go into the same document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    return Draft202012Validator(schema, format_checker=FormatChecker())
