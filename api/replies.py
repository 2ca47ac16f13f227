"""What goes well, as HTTP: JSON in one encoding, with the status that fits."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from shared.encoding import dumps

OK = HTTPStatus.OK.value
CREATED = HTTPStatus.CREATED.value
ACCEPTED = HTTPStatus.ACCEPTED.value
NO_CONTENT = HTTPStatus.NO_CONTENT.value


class Json(Response):
    """A JSON response; content may hold UUIDs, datetimes and dataclasses."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Encode the content."""
        return dumps(content)


def ok(content: object) -> Json:
    """Here it is."""
    return Json(content, OK)


def created(content: object, location: str, *, fresh: bool) -> Json:
    """It was made, or it had been made before under the same key."""
    return Json(content, CREATED if fresh else OK, {"Location": location})


def accepted(
    content: object, headers: Mapping[str, str] | None = None, *, fresh: bool = True
) -> Json:
    """It will be done, or it had been accepted before under the same key."""
    return Json(content, ACCEPTED if fresh else OK, headers)


def no_content() -> Response:
    """It is done, and there is nothing to say."""
    return Response(status_code=NO_CONTENT)
