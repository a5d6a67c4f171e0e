"""Links to files that work without a key for a while."""

from __future__ import annotations

import hmac
import secrets
import time
from hashlib import sha256

from .errors import UnauthorizedError

LIFE = 3600  # seconds


class Links:
    """Signs links with a secret of this process: they end with it."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def query(self, name: str) -> str:
        """What stands behind the `?` of a link to a file."""
        expires = int(time.time()) + LIFE
        return f"expires={expires}&signature={self._sign(name, expires)}"

    def check(self, name: str, expires: int, signature: str) -> None:
        """Raises UnauthorizedError unless query() gave them, less than an hour ago."""
        same = hmac.compare_digest(signature.encode(), self._sign(name, expires).encode())
        if not same or time.time() > expires:
            raise UnauthorizedError(
                "the link is not valid any more; ask for the request's result again, or send a key"
            )

    def _sign(self, name: str, expires: int) -> str:
        return hmac.new(self._secret, f"{name} {expires}".encode(), sha256).hexdigest()
