"""Ask a server that speaks the chat completions protocol of OpenAI."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AsyncExitStack
from typing import Any

from muco.core.errors import MucoError
from muco.generate.requests import Answer, Body
from muco.generate.settings import Server

_NO_KEY = "none"
_SHOWN_CHARACTERS = 300
_RAW: Any = {"headers": {"X-Stainless-Raw-Response": "true"}}
"""Makes the client return the response, which knows how many tries failed, and not the value in it alone."""


class RefusedRequestError(Exception):
    """The server answered that this request is wrong; another one may be right."""


class UnansweredError(Exception):
    """The server gave no answer in all tries."""


class UnreachableError(UnansweredError):
    """There was no connection in any try."""


class Client:
    """A server, for use as an asynchronous context."""

    def __init__(self, server: Server) -> None:
        """Check the settings; raise MucoError if openai is missing or the variable of the key is not set."""
        try:
            import aiohttp  # noqa: F401
            import openai  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MucoError("generating data needs openai: pip install 'muco[generate]'") from None
        self._openai, self._server = openai, server
        self._key = _NO_KEY
        if server.key_variable is not None:
            self._key = os.environ.get(server.key_variable, "").strip()
            if not self._key:
                raise MucoError(
                    f"the environment variable {server.key_variable} is not set; it holds the key of "
                    f"{server.base_url} (server.key_variable)"
                )

    async def __aenter__(self) -> Client:
        self._stack = AsyncExitStack()
        client: Any = self._openai.AsyncOpenAI(
            base_url=self._server.base_url,
            api_key=self._key,
            timeout=self._server.timeout_seconds,
            http_client=self._openai.DefaultAioHttpClient(),  # the other slows down with hundreds of requests
        )
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def ask(self, body: Body, *, max_retries: int = sys.maxsize) -> Answer:
        """Return the answer to a request, which is repeated as the settings say, at most `max_retries` times.

        Raises:
            RefusedRequestError: status 400, 413 or 422.
            UnansweredError: the last try failed too; `UnreachableError` without a connection.
            MucoError: the key, the address or the model is wrong.
        """
        errors = self._openai
        try:
            # Not `chat.completions.create`, which checks the type of every key; bytes are not copied either.
            content = json.dumps(body).encode()
            options = {**_RAW, "max_retries": min(max_retries, self._server.max_retries)}
            raw = await self._client.post(
                "/chat/completions", content=content, cast_to=object, options=options
            )
            return _answer(raw.parse(), raw.retries_taken)
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            hint = "" if self._server.key_variable else "; name the variable of a key: server.key_variable"
            raise MucoError(
                f"{self._server.base_url} refuses the key{hint}: {self._message(error)}"
            ) from None
        except errors.NotFoundError as error:
            raise MucoError(
                f"{self._server.base_url} has no chat completions or no model {body.get('model')!r} "
                f"(server.base_url ends in /v1 as a rule): {self._message(error)}"
            ) from None
        except errors.APIStatusError as error:
            kind = RefusedRequestError if error.status_code in (400, 413, 422) else UnansweredError
            raise kind(f"status {error.status_code}: {self._message(error)}") from None
        except errors.OpenAIError as error:
            message = self._message(error.__cause__ or error)
            raise UnreachableError(f"{self._server.base_url}: {message or type(error).__name__}") from None
        except _BadAnswerError as error:
            raise UnansweredError(str(error)) from None

    def _message(self, error: BaseException) -> str:
        """Return the server's message, on one short line and without the key."""
        body = getattr(error, "body", None)
        text = body.get("message") if isinstance(body, dict) else None
        line = " ".join(str(text or error).split())[:_SHOWN_CHARACTERS].replace(" ssl:default", "")
        return line if self._key == _NO_KEY else line.replace(self._key, "***")


class _BadAnswerError(Exception):
    pass


def _answer(completion: Any, retries: int) -> Answer:
    """Return what a completion says; raise `_BadAnswerError` if it is none."""
    try:
        choice = completion["choices"][0]
        message, usage = choice["message"], completion.get("usage") or {}
        return Answer(
            _unicode(message.get("content")),
            _unicode(message.get("refusal")),
            _unicode(choice.get("finish_reason")),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            retries,
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        raise _BadAnswerError("the answer is no chat completion; is base_url right?") from None


def _unicode(text: Any) -> str:
    """Return a text without halves of characters, which no file can hold."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""
