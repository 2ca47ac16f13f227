"""Calls of models that failed: the log has each kind of them, users no more than is theirs.

What a provider says of a request may quote it, and with it what a user said: the log is told the
words of refusals that are of the account, and of others the status and what we know the words of.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

from agent_core import Model, ProviderError, StreamError
from agent_core.redaction import error_text, redact

log = structlog.get_logger(__name__)

UNUSABLE = "the model can't be used just now"
"""What users read where the operator's key or the model's name is wrong."""

SAY_SECONDS = 10.0
"""How long further errors of one kind of one model are only counted."""

FORM_REFUSED = re.compile(r"response_format|json_schema|json_object", re.IGNORECASE)
"""What a provider says that does not know the form which was asked of an answer."""

_NO_ACCESS = {401, 403, 404}
_OF_ACCOUNT = _NO_ACCESS | {402, 429}
_KNOWN = re.compile(
    r"The model (?:did not answer|stalled)[\w :]*|The model's (?:answer|stream) [\w ]+"
    r"|Cannot connect to host [^\s,]+|Connection (?:failed|error)"
)
_LONGEST = 300
_MOST_KINDS = 200


class ModelErrors:
    """Tells the log of calls that failed: a kind of error of a model once in SAY_SECONDS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: OrderedDict[tuple[str, int | None, str], tuple[float, int]] = OrderedDict()

    def tell(self, model: Model, purpose: str, status: int | None, text: str) -> None:
        """Log one that failed, or count it for the next line of its kind."""
        said = _loggable(status, text)
        kind = model.name, status, said[:40]
        at, left_out = self._said.get(kind, (float("-inf"), 0))
        now = self._clock()
        if now - at < SAY_SECONDS:
            self._said[kind] = at, left_out + 1
            return
        self._said[kind] = now, 0
        self._said.move_to_end(kind)
        if len(self._said) > _MOST_KINDS:
            self._said.popitem(last=False)
        log.warning(
            "a model call failed",
            model=model.name,
            purpose=purpose,
            status=status,
            error=said,
            left_out=left_out,
        )

    def take(
        self, model: Model, purpose: str, failed: StreamError | Exception, api_key: str | None
    ) -> bool:
        """Tell the log of what failed; whether users are to read UNUSABLE instead of its words."""
        if isinstance(failed, StreamError):
            status, text = failed.status, redact(failed.error.error_message or "", api_key)
        else:
            status = failed.status if isinstance(failed, ProviderError) else None
            text = error_text(failed, api_key)
        self.tell(model, purpose, status, text)
        # A story's call whose form was refused is made again without it.
        return status in _NO_ACCESS and FORM_REFUSED.search(text) is None


def _loggable(status: int | None, text: str) -> str:
    """What of a failure's words can quote no user."""
    if status in _OF_ACCOUNT:
        return text.partition("\n")[0][:_LONGEST]
    known = _KNOWN.findall(text)
    return ": ".join(known) if known else "not told here: it may quote a user"
