"""The OpenAPI description: what FastAPI finds out by itself, put right where it can't know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.access import PRIVATE
from api.problems import ProblemBody

_FASTAPIS_OWN = {"HTTPValidationError", "ValidationError"}


def describe(app: FastAPI) -> None:
    """Make the application give our description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _description(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # the way FastAPI documents


def _description(app: FastAPI) -> dict[str, Any]:
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = description["components"]
    components["schemas"] = {
        name: schema for name, schema in components["schemas"].items() if name not in _FASTAPIS_OWN
    }
    components["schemas"]["ProblemBody"] = ProblemBody.model_json_schema()
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, operations in description["paths"].items():
        for operation in operations.values():
            _drop_fastapis_own(operation["responses"])
            if path.startswith(PRIVATE):
                operation["security"] = [{"bearer": []}]
    return description


def _drop_fastapis_own(responses: dict[str, Any]) -> None:
    """FastAPI promises its own validation error wherever a route takes a parameter."""
    for status, response in list(responses.items()):
        if "HTTPValidationError" in str(response.get("content", "")):
            del responses[status]
