"""The errors that the server answers with."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An error that ends a request; `body` is in the form that OpenAI's clients read.

    Args:
        status: The HTTP status.
        message: One line that names the field, its value and the remedy.
        param: The field of the request that is wrong, if any.
        code: An identifier for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form. Half of a surrogate pair, which UTF-8 has no bytes for, becomes "?"."""
        message = str(self).encode("utf-8", "replace").decode()
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}
