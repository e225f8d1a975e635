"""The status page: one document that brings its style and its script, and may load nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page() -> str:
    """The HTML of the page. It holds no state: its script asks `/overlay/status`, relative to where the page came from,
    so that both may live behind a path that a proxy takes away."""
    return files("overlay.web").joinpath("page.html").read_text(encoding="utf-8")


def _allowed(element: str) -> str:
    """The source expression of Content-Security-Policy for the one inline element of this name."""
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page(), flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


#: Nothing but the page's own script and style runs, and it talks to its own server alone.
HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_allowed('script')}",
            f"style-src {_allowed('style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
}
