"""Links that open one path for a short time without a header: docarray's ``pull`` sends none with its second
request.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import urlencode

from finetuner.access import Token, TokenStore
from finetuner.errors import InvalidTokenError, NotFoundError

LINK_FIELDS = ("token", "expires", "signature")
_VALID_S = 60


def sign(path: str, token: Token) -> str:
    """Return the query that opens a path for a minute to who has the link.

    :param path: As it is before it is quoted.
    :param token: Of who asks. What the volume keeps of it is the key, so every gateway of the volume
        knows the link, and it ends with the token.
    """
    expires = str(int(time.time()) + _VALID_S)
    return urlencode(
        {"token": token.name, "expires": expires, "signature": _mark(path, expires, token)}
    )


def holder(path: str, query: Mapping[str, str], tokens: TokenStore) -> Token:
    """Return the token that a link was made with.

    :param path: That is asked for.
    :param query: Holds :data:`LINK_FIELDS`.
    :param tokens: Of the volume.
    :raises InvalidTokenError: When the link is of another path, too old, forged, or its token revoked.
    """
    name, expires, signature = (query.get(field, "") for field in LINK_FIELDS)
    try:
        token = tokens.get(name)
        is_real = hmac.compare_digest(
            _mark(path, expires, token).encode(), signature.encode("utf-8", "surrogatepass")
        )
        is_young = is_real and time.time() < int(expires)
    except NotFoundError:
        is_young = False
    if not is_young:
        raise InvalidTokenError("the link is not valid, or no more: ask for a new one")
    return token


def _mark(path: str, expires: str, token: Token) -> str:
    message = f"{path}\n{expires}".encode("utf-8", "surrogatepass")
    return hmac.new(bytes.fromhex(token.digest), message, hashlib.sha256).hexdigest()
