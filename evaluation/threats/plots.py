"""Plots and images for the report, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cipherward.evaluation.threats.row import Picture

OFF, ON = "#b3402a", "#0b6e4f"
"""Colours of what was found with the defence off and on."""


def plot(caption: str, draw: Callable[[Any], None], width: float = 7.2, height: float = 2.8) -> Picture:
    """What ``draw`` puts on matplotlib axes, as SVG; inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Picture(caption, _uri("svg+xml", out.getvalue()))


def images(caption: str, shown: Mapping[str, NDArray[np.floating[Any]]], pixels: int = 120) -> list[Picture]:
    """Each of the named images beside the others: shape (h, w) in grey or (h, w, 3), values 0 to 1; values outside
    are clipped. The first has ``caption`` before its name."""
    from matplotlib import image

    made = []
    for place, (name, values) in enumerate(shown.items()):
        out = io.BytesIO()
        image.imsave(out, np.clip(values, 0.0, 1.0), cmap="gray", vmin=0.0, vmax=1.0, format="png")
        text = f"{caption}: {name}" if place == 0 else name
        made.append(Picture(text, _uri("png", out.getvalue()), pixels))
    return made


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
