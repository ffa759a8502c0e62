"""What every route of the pack shares: JSON in, JSON out, errors as sentences, and no changes for other sites' pages."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from aiohttp import web

from ..training.errors import PistachioError


JSON, BYTES = "application/json", "application/octet-stream"


def answered(handler: Callable[[web.Request], dict | Awaitable[dict]], *, takes: str = JSON) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler's dict as JSON, and what goes wrong as a sentence. GET handlers run in a thread, POST handlers are coroutines.

    `takes` is the content type of a POST: one that a form of another site can't have.
    """

    async def answer(request: web.Request) -> web.Response:
        try:
            if request.method == "POST":
                _refuse_strangers(request, takes)
                return web.json_response(await handler(request))
            return web.json_response(await asyncio.to_thread(handler, request))
        except PistachioError as error:
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:
            return web.json_response({"error": f"A file or folder can't be used: {error}."}, status=500)

    return answer


async def json_body(request: web.Request) -> dict:
    try:
        body = json.loads(await request.text())
    except (ValueError, LookupError) as error:
        raise PistachioError(f"The request is not JSON ({error}).") from error
    if not isinstance(body, dict):
        raise PistachioError("The request is no JSON object.")
    return body


def text_of(body: Mapping, name: str) -> str:
    if not isinstance(body.get(name), str):
        raise PistachioError(f"'{name}' is missing, or is no text.")
    return body[name]


def is_from_this_machine(request: web.Request) -> bool:
    return is_loopback(request.remote)


def is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _refuse_strangers(request: web.Request, takes: str) -> None:
    """A page of another site can send a form, but neither JSON nor bare bytes, nor our own address as its origin."""
    if request.content_type != takes:
        raise web.HTTPUnsupportedMediaType(text=f"Send it as {takes}.")
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise web.HTTPForbidden(text="Changes are taken from ComfyUI's own pages alone.")
    origin = request.headers.get("Origin")
    # As ComfyUI itself does: behind a proxy the two may differ, on the user's own machine they don't.
    if origin is not None and is_loopback(urlsplit(f"//{request.host}").hostname) and urlsplit(origin).netloc.lower() != request.host.lower():
        raise web.HTTPForbidden(text="Changes are taken from ComfyUI's own pages alone.")
