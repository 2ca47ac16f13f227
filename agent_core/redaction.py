"""Keeping keys out of error texts: they go to models, users and logs."""

from __future__ import annotations

import re

_HIDDEN = "[hidden]"

# Shapes of credentials that providers and libraries put into their error messages.
_KEYS = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|ghp|gho|github_pat|AKIA|AIza|hf)[-_]?[A-Za-z0-9_\-]{12,}"
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
