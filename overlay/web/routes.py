"""`/overlay` and `/overlay/status`. Read-only; whatever else is asked of them is answered 405 by Starlette."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from overlay.web.page import HEADERS, page
from overlay.web.snapshot import Snapshot

_FRESH = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def routes(snapshot: Snapshot) -> list[Route]:
    """Routes of Starlette's, not of FastAPI's: the server's OpenAPI document stays sglang's own.

    They carry no auth level of sglang's, and so are of its normal one: behind --api-key where there is one.
    """

    async def overlay_status(_request: Request) -> Response:
        return Response((await snapshot.view()).body, media_type="application/json", headers=_FRESH)

    async def overlay_page(_request: Request) -> Response:
        return Response(page(), media_type="text/html", headers={**_FRESH, **HEADERS})

    return [
        Route("/overlay", overlay_page, methods=["GET"]),
        Route("/overlay/status", overlay_status, methods=["GET"]),
    ]
