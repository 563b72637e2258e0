"""The way into Ray Serve LLM: adapters by their bare names, and requests that outlive the replica that had them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError, RayTaskError
from ray.llm._internal.common.errors import VLLM_FATAL_ERRORS
from ray.llm._internal.serve.core.ingress.ingress import OpenAiIngress

from mos_vllm.ray_replica import EngineGone

ENDED: tuple[type[Exception], ...] = (RayActorError, *VLLM_FATAL_ERRORS)  # the replica, or the engine in it, has died
ATTEMPTS = 3
PAUSE = 0.5  # seconds until the next attempt


class AdapterIngress(OpenAiIngress):
    """Ray's OpenAI API, with one base model. Its list of models is short: Ray would ask a bucket for each adapter."""

    def __init__(self, llm_deployments: Any, model_cards: Any, **_: Any) -> None:
        super().__init__(llm_deployments, model_cards)
        self.suspects = Suspects()

    async def _get_model_id(self, model: str | None) -> str:
        """`base:ann` for `ann`. Raises HTTPException 404 for another base model."""
        [base] = self._model_cards
        if model is not None and model != base and ":" not in model:
            model = f"{base}:{model}"
        return await super()._get_model_id(model)

    async def _process_llm_request(self, *args: Any, **options: Any) -> Response:
        """The response to a client. A refusal has the form of OpenAI's errors, with one sentence."""
        try:
            return await super()._process_llm_request(*args, **options)
        except HTTPException as error:
            said = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": error.status_code}
            return JSONResponse({"error": said}, error.status_code)

    async def _get_response(self, *, body: Any, **options: Any) -> AsyncGenerator[Any, None]:
        """The answer of a replica, in parts. If the replica dies before the first part, another one is asked.

        The request may be what it died of. So it is asked until `ATTEMPTS` engines have died with it, the last time
        with no other suspect (`Suspects`): then only one that kills engines is refused. An engine that had died before
        the request came does not count.

        Raises HTTPException: 400 for such a request, 404 and 400 for an adapter that is not there or is broken.
        """
        body = body.model_copy(update={"model": await self._get_model_id(body.model)})
        deaths = 0
        while deaths < ATTEMPTS:
            begun = False
            async with self.suspects.turn(deaths):
                try:
                    async for part in super()._get_response(body=body, **options):
                        begun = True
                        yield part
                    return
                except ENDED:
                    if begun:
                        raise
                    deaths += 1
                except RayTaskError as error:
                    if not isinstance(error.cause, EngineGone):
                        raise refused(error) from None
                await asyncio.sleep(PAUSE)
        raise HTTPException(400, f"{ATTEMPTS} engines have died with this request in them; it is not tried again.")


class Suspects:
    """Requests with which an engine has died. One of them killed it, and the others must not stay in its company.

    Their second attempts run beside each other, since they may be many. A last attempt runs beside none of them.
    """

    def __init__(self) -> None:
        self.running: list[int] = []  # the deaths that each has seen
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, deaths: int) -> AsyncGenerator[None, None]:
        """Wait until a request that has seen so many deaths may run. A request without any is no suspect."""
        if not deaths:
            yield
            return
        async with self.changed:
            await self.changed.wait_for(lambda: not self.running or max(deaths, *self.running) < ATTEMPTS - 1)
            self.running.append(deaths)
        try:
            yield
        finally:
            async with self.changed:
                self.running.remove(deaths)
                self.changed.notify_all()


def refused(error: RayTaskError) -> Exception:
    """What a replica raised: a refusal without the replica's traceback, or the error as it is."""
    cause = error.cause
    return HTTPException(cause.status_code, cause.detail) if isinstance(cause, HTTPException) else error
