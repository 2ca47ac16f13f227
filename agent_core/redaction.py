"""Keeping keys out of error texts: they go to models, users and logs."""

from __future__ import annotations

import re

_HIDDEN = "[hidden]"

# Shapes of credentials that providers and libraries put into their error messages.
# Words and names may begin as they do, so what could be one is hidden only with a digit in it, or
# where it is too long for a word. How far a digit is looked for is bounded: texts may be long.
_KEYS = re.compile(
    r"\b(?:AKIA|AIza|github_pat_|sk-proj-|sk-ant-)[A-Za-z0-9_\-]{12,}"
    r"|\b(?:sk|pk|rk)[-_](?=[A-Za-z0-9_\-]{0,60}[0-9]|[A-Za-z]{22})[A-Za-z0-9_\-]{12,}"
    r"|\b(?:gsk_|xai-|gh[oprsu]_|hf_)(?=[A-Za-z]{0,60}[0-9]|[A-Za-z]{22})[A-Za-z0-9]{12,}"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=\-]{8,}"
    r"|(?<=://)[^\s/:@]+:[^\s/@]+(?=@)"
)


def redact(text: str, *secrets: str | None) -> str:
    """Hide what looks like a key, and each of the given secrets."""
    for secret in secrets:
        if secret and len(secret) >= 4:
            text = text.replace(secret, _HIDDEN)
    return _KEYS.sub(_HIDDEN, text)


def error_text(error: BaseException, *secrets: str | None) -> str:
    """Return what an exception says, or else its type, without keys.

    What is no Exception is named: `SystemExit(2)` says only "2".
    """
    name = type(error).__name__
    try:
        text = redact(str(error), *secrets)
    except Exception:  # noqa: BLE001 - it is other people's: what it says may fail as well
        return name
    if not text or isinstance(error, Exception):
        return text or name
    return f"{name}: {text}"
