"""Credentials never travel in addresses, and never show in what is written or printed.

An address ends up in messages, logs, tables and shell histories. `refuse_credentials` therefore
turns away a URL that carries a key, and `masked` replaces whatever looks like one in a text."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from ..core.errors import InputError

MASK = "***"

_SECRET_WORD = r"secret|token|passw|credential|signature|key|sas\b|connection_string"
_OPTION = re.compile(rf"([?&;][^=&\s]*(?:{_SECRET_WORD})[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)
_USER = re.compile(r"(\w[\w+.-]*://)[^\s/@:'\"]*:[^\s@'\"]*@")
_USER_OF_BUCKET = re.compile(r"\b((?:s3a?|gs|gcs)://)[^\s/@'\"]*@", re.IGNORECASE)
_ENVIRONMENT = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCOUNT_KEY|API_KEY")
_SHORTEST = 8
"""Characters of the shortest value of the environment that is masked; shorter ones are words."""


def refuse_credentials(url: str) -> None:
    """Raise InputError, with the secret masked, if a URL carries credentials.

    They may stand before the host (`s3://KEY:SECRET@bucket`), also with a slash inside, in an
    option (`?secret_key=…`), or in a URL that is itself the value of an option."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    bucket = parts.scheme in ("s3", "s3a", "gs", "gcs")
    found = [
        bool(_USER.match(url)),
        bucket and ("@" in parts.netloc or ":" in parts.netloc),
        any(re.search(_SECRET_WORD, name, re.IGNORECASE) for name, _ in options),
        any(_USER.search(unquote(value)) for _, value in options),
    ]
    if any(found):
        shown = masked(url)
        if bucket and ":" in urlsplit(shown).netloc:  # a secret cut off by an @ that is missing
            shown = f"{parts.scheme}://{MASK}"
        if any(_USER.search(unquote(value)) for _, value in options):
            shown = f"{shown.partition('?')[0]}?{MASK}"
        raise InputError(
            f"{shown}: credentials belong in the environment, not in an address, which ends up in "
            f"messages and logs. Take them out of it and set, for S3, AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY on every machine"
        )


def masked(text: str) -> str:
    """The text with a mask in place of every credential that can be recognised.

    Recognised are users and passwords in URLs, options of URLs whose names speak of secrets, and
    the values of this process's environment variables whose names do."""
    text = _OPTION.sub(rf"\g<1>{MASK}", text)
    text = _USER.sub(rf"\g<1>{MASK}@", text)
    text = _USER_OF_BUCKET.sub(rf"\g<1>{MASK}@", text)
    for name, value in os.environ.items():
        secret = len(value) >= _SHORTEST and _ENVIRONMENT.search(name.upper())
        # the path of a file of credentials is no secret
        if secret and value in text and not os.path.exists(value):
            text = text.replace(value, MASK)
    return text
