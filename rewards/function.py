"""A reward function that was written for another project, used as it is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlkit import reward
from rlkit.errors import ConfigError, RlkitError
from rlkit.http import Endpoint, Failure, authorisation, checked_url
from rlkit.interfaces.rewards import RewardResult, Sample

from .common import Range, Source, named_in
from .styles import Adapter, Style, misfit, openrlhf_results, signature_of

_TEXTS_PER_REQUEST = 64


class FunctionConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    path: Source | None = None
    """A Python file, or a module that can be imported or lies in the working directory."""
    name: str | None = None
    """The function in it."""
    style: Style = "trl"
    """The project whose way of calling it follows."""
    chat: bool = False
    """Styles trl and verifiers: prompts (the data's own) and completions as chat messages; false: as text."""
    kwargs: dict[str, Any] = {}
    """Further keyword arguments, the same for each call."""
    range: Range | None = None
    """Lowest and highest reward; None: the function's own attribute `range`, where it has one."""
    url: str | None = None
    """Style openrlhf_http: the server that answers POST {"query", "prompts", "labels"}."""
    api_key_env: str | None = None
    """Style openrlhf_http: environment variable that holds the server's key; None: it wants none."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Style openrlhf_http: for one request, its three retries included."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.style == "openrlhf_http":
            if self.url is None or self.path is not None or self.name is not None:
                raise ValueError("style openrlhf_http asks a server: give url, and neither path nor name")
            if self.kwargs:
                raise ValueError("style openrlhf_http takes no kwargs: the request has three fields")
            checked_url(self.url)
        elif self.path is None or self.name is None or self.url is not None:
            raise ValueError(f"style {self.style} calls a function: give path and name (and no url)")
        if self.api_key_env is not None and self.url is None:
            raise ValueError("api_key_env: the key of a server, which url names")
        if self.chat and self.style not in ("trl", "verifiers"):
            raise ValueError(f"chat is for styles trl and verifiers; {self.style} gives text")
        return self


@reward("function")
class Function:
    """Your own reward function, as written for TRL, verl, OpenRLHF, verifiers or AReaL.

    Raises ConfigError where the function is not there or its signature does not fit the style, with the style that
    would fit; RlkitError for a call that turns out not to fit the data's columns, or an unusable return value. An
    exception in a style that calls once a sample costs that sample (`error`).
    """

    def __init__(self, config: FunctionConfig) -> None:
        self.range = config.range
        # A server is only waited for, under deadlines of this reward's own.
        self.in_process = config.url is not None
        if config.url is not None:
            self._call: Callable[[Sequence[Sample]], list[RewardResult]] = _Remote(config.url, config)
            return
        assert config.path is not None
        assert config.name is not None
        name = f"{config.path}:{config.name}"
        function = _find(config.path, config.name)
        signature = signature_of(function)
        if why := misfit(signature, config.style, config.kwargs):
            raise ConfigError(f"reward function {name}{signature} does not fit: {why}")
        self.range = config.range or getattr(function, "range", None)
        self.in_process = getattr(function, "in_process", False)
        # One event loop for all calls, so that a client the function keeps stays usable.
        self._call = Adapter(
            function, f"reward function {name}", config.style, config.chat, config.kwargs, asyncio.Runner()
        )

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        return self._call(samples) if samples else []


class _Remote:
    def __init__(self, url: str, config: FunctionConfig) -> None:
        self._endpoint = Endpoint(
            url=url,
            headers=authorisation(config.api_key_env, "reward function"),
            concurrency=4,
            timeout_s=config.timeout_s,
            retries=3,
            backoff_s=0.5,
        )

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        parts = [samples[at : at + _TEXTS_PER_REQUEST] for at in range(0, len(samples), _TEXTS_PER_REQUEST)]
        bodies = [
            {
                "query": [s.prompt + s.response for s in part],
                "prompts": [s.prompt for s in part],
                "labels": [s.answer for s in part],
            }
            for part in parts
        ]
        results: list[RewardResult] = []
        for part, reply in zip(parts, self._endpoint.post_all(bodies, _Reply), strict=True):
            if not isinstance(reply, Failure):
                try:
                    results += openrlhf_results(reply.json, len(part), f"{self._endpoint.url} answered ")
                    continue
                except RlkitError as error:
                    reply = Failure("error", str(error))
            results += [RewardResult(value=None, status=reply.status, info={"error": reply.reason}) for _ in part]
        return results


class _Reply:
    def __init__(self, json: Any) -> None:
        self.json = json


def _find(path: str, name: str) -> Callable[..., Any]:
    function = named_in(path, name, "reward function:")
    if inspect.isclass(function) or not callable(function):
        raise ConfigError(f"reward function: {path}:{name} is a {type(function).__name__}; name a function")
    return function  # type: ignore[no-any-return]
