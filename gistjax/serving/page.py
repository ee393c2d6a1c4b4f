"""The page for people: one HTML file, which runs and loads nothing but what stands in it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi.responses import HTMLResponse


def make_page() -> HTMLResponse:
    """Return the page. Its browser runs the script and the style of this file, and no other."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "img-src": "data:",  # the icon, which is empty
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",  # no text becomes HTML, even by mistake
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-cache",  # after an update it is the new one's
    }
    return HTMLResponse(text, headers=headers)


def _hashes(text: str, tag: str) -> str:
    """Return the hashes by which a browser knows what stands in elements of a kind."""
    found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in found]
    return " ".join(f"'sha256-{one}'" for one in hashes)
