"""Spending over time as a picture: one panel for each data set, as SVG or as a page that holds it.

Written here, without a plotting library: a hospital's agent has none, and the picture needs none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from cipherward.durable import write_file
from cipherward.errors import UsageError

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 300, 60, 24, 58, 40
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito 2008
_INK, _GREY, _LIMIT = "#222", "#777", "#b00020"


def write(accounts: list[dict[str, Any]], path: Path) -> None:
    """``accounts``: ``data_sets`` of ``spending.ledger_status``. A file of that name is replaced.

    Raises UsageError for another suffix than .svg or .html, EnvironmentProblem if it cannot be written.
    """
    if path.suffix == ".svg":
        content = svg(accounts)
    elif path.suffix == ".html":
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Privacy spent</title>'
        content = f'{head}<body style="margin:2em;max-width:{_WIDTH}px">{svg(accounts)}</body></html>\n'
    else:
        raise UsageError(
            f"{path} cannot be drawn",
            why="a plot of spending is a vector graphic",
            fix="Name it .svg or .html",
        )
    write_file(path, content.encode())


def svg(accounts: list[dict[str, Any]]) -> str:
    """The picture. A ceiling of None is none; a round whose epsilon is None though it was the data set's own
    had no noise: from there on there is no bound."""
    panels = [account for account in accounts if "problem" not in account]
    height = max(1, len(panels)) * _PANEL
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="12" fill="{_INK}" role="img">',
        "<title>Privacy spent over time</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    if not panels:
        lines.append(f'<text x="{_LEFT}" y="40">No data set is registered.</text>')
    for number, account in enumerate(panels):
        lines += [f'<g transform="translate(0 {number * _PANEL})">', *_panel(account), "</g>"]
    return "\n".join([*lines, "</svg>\n"])


def _panel(account: dict[str, Any]) -> Iterator[str]:
    rounds, ceiling = account["spending"], account["epsilon_ceiling"]
    title = f"{account['name']}: epsilon spent by the worst of {account['patients']} patients"
    yield _text(_LEFT, 20, f"{title}, at delta {account['delta']:g}", weight="bold")
    if not rounds:
        yield _text(_LEFT, 60, "Nothing was spent yet.")
        return
    times = _forwards(item["recorded_at"] for item in rounds)
    steps = [(at, item) for at, item in zip(times, rounds, strict=True) if item["own"]]
    finite = [item["epsilon"] for _, item in steps if item["epsilon"] is not None]
    if account["epsilon"] is not None:
        finite.append(account["epsilon"])
    top: float = 1.05 * max([*finite, ceiling or 0.0, 1e-3])
    first, last = times[0], max(times[-1], times[0] + 1.0)

    def x(at: float) -> float:
        return _LEFT + 12 + (at - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT - 24)

    def y(value: float) -> float:
        return _PANEL - _BOTTOM - value / top * (_PANEL - _TOP - _BOTTOM)

    yield from _axes(first, last, top, x, y)
    if ceiling is not None:
        yield _line(_LEFT, y(ceiling), _WIDTH - _RIGHT, y(ceiling), _LIMIT, dashed=True)
        yield _text(_LEFT + 2, y(ceiling) - 5, f"ceiling {ceiling:g}", colour=_LIMIT)
    studies = list(dict.fromkeys(item["study"] for item in rounds))
    colour = {study: _COLOURS[index % len(_COLOURS)] for index, study in enumerate(studies)}
    yield from _legend(colour)
    bounded = [(at, item) for at, item in steps if item["epsilon"] is not None]
    path, height = [f"M{_LEFT:.1f} {y(0):.1f}"], 0.0
    for at, item in bounded:
        path.append(f"H{x(at):.1f}V{y(item['epsilon']):.1f}")
        height = item["epsilon"]
    if account["epsilon"] is not None:
        path.append(f"H{x(last):.1f}V{y(account['epsilon']):.1f}")
        height = account["epsilon"]
    yield f'<path d="{"".join(path)}H{_WIDTH - _RIGHT}" fill="none" stroke="{_INK}" stroke-width="1.5"/>'
    for at, item in bounded:
        said = f"{item['study']} round {item['round']}: epsilon {item['epsilon']:.4g} ({item['cost']})"
        yield (
            f'<circle cx="{x(at):.1f}" cy="{y(item["epsilon"]):.1f}" r="3.5" fill="{colour[item["study"]]}">'
            f"<title>{escape(said)}</title></circle>"
        )
    unbounded = next((at for at, item in steps if item["epsilon"] is None), None)
    if unbounded is not None:
        yield _line(x(unbounded), y(0), x(unbounded), y(top), _LIMIT)
        yield _text(x(unbounded) + 5, _TOP + 14, "no noise: no bound from here on", colour=_LIMIT)
    elif account["epsilon"] is not None:
        yield _text(_WIDTH - _RIGHT - 18, y(height) + 16, f"{height:.4g} spent", anchor="end")


def _axes(
    first: float, last: float, top: float, x: Callable[[float], float], y: Callable[[float], float]
) -> Iterator[str]:
    for value in _round_values(top):
        yield _line(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#ddd")
        yield _text(_LEFT - 8, y(value) + 4, f"{value:g}", anchor="end", colour=_GREY)
    span = (last - first) / 1000
    form = "%Y-%m-%d" if span > 4 * 86400 else "%m-%d %H:%M" if span > 600 else "%H:%M:%S"
    marks = 5 if last - first > 1 else 1
    for number in range(marks):
        at = first + (last - first) * number / max(1, marks - 1)
        shown = datetime.fromtimestamp(at / 1000, UTC).strftime(form)
        yield _text(x(at), _PANEL - _BOTTOM + 18, shown, anchor="middle", colour=_GREY)
    day = datetime.fromtimestamp(last / 1000, UTC).strftime("%Y-%m-%d")
    yield _text(_WIDTH - _RIGHT, _PANEL - 6, f"UTC, until {day}", anchor="end", colour=_GREY)


def _legend(colour: dict[str, str]) -> Iterator[str]:
    at = float(_LEFT)
    for study, of in colour.items():
        if at > _WIDTH - 120:
            yield _text(at, 40, "...")
            return
        yield f'<circle cx="{at + 4:.0f}" cy="36" r="4" fill="{of}"/>' + _text(at + 12, 40, study)
        at += 26 + 7 * len(study)


def _forwards(recorded: Iterable[int]) -> list[float]:
    """Times that never go back: the clock decides nothing, and may have been set."""
    out: list[float] = []
    for at in recorded:
        out.append(max(float(at), out[-1] if out else float(at)))
    return out


def _round_values(top: float) -> list[float]:
    """About five round numbers from 0 to ``top``."""
    step = 10.0 ** math.floor(math.log10(top / 2))
    step *= next((factor for factor in (1, 2, 5) if top / (factor * step) <= 6), 10)
    return [number * step for number in range(int(top / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def _text(
    x: float, y: float, said: str, *, anchor: str = "start", colour: str = _INK, weight: str = "normal"
) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f"<text {where}>{escape(said)}</text>"
