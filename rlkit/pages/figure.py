"""Figures without pyplot, which would keep them for ever and show them twice. Imports matplotlib."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlkit.wording import visible


def drawn(text: str) -> str:
    """Any text as a label. matplotlib takes what stands between two dollars for TeX, and fails where it is none."""
    return visible(text).replace("$", r"\$")


class Picture(Figure):
    """A matplotlib figure that a notebook shows by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png", dpi=80, metadata={"Software": None})
        return image.getvalue()


def as_html(picture: Picture, alt: str) -> str:
    """The picture within a page, as wide as there is room."""
    data = base64.b64encode(picture._repr_png_()).decode()
    return f'<img style="max-width: 100%" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
