"""The picture of spending is well-formed whatever the ledger holds, and shows every round that was paid."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cipherward.site_agent.spending_plot import svg

SVG = "{http://www.w3.org/2000/svg}"
rounds = st.lists(
    st.fixed_dictionaries(
        {
            "recorded_at": st.integers(0, 2_000_000_000_000),
            "study": st.sampled_from(["heart", "lungs", "a" * 60]),
            "round": st.integers(1, 99),
            "cost": st.just("1 step, noise 2 <&>"),
            "own": st.booleans(),
            "epsilon": st.one_of(st.none(), st.floats(0, 1e6)),
        }
    ),
    max_size=30,
)


def account(spending: list[dict[str, Any]], epsilon: float | None, ceiling: float | None) -> dict[str, Any]:
    return {
        "name": "ward",
        "patients": 100,
        "delta": 1e-5,
        "epsilon": epsilon,
        "epsilon_ceiling": ceiling,
        "spending": spending,
    }


@given(
    spending=rounds,
    epsilon=st.one_of(st.none(), st.floats(0, 1e6)),
    ceiling=st.one_of(st.none(), st.floats(1e-3, 1e6)),
)
def test_any_history_can_be_drawn(
    spending: list[dict[str, Any]], epsilon: float | None, ceiling: float | None
) -> None:
    for item in spending:
        item["epsilon"] = item["epsilon"] if item["own"] else None
    drawn = ET.fromstring(svg([account(spending, epsilon, ceiling), {"name": "old", "problem": "gone"}]))
    dots = [dot for dot in drawn.iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    assert len(dots) == sum(item["epsilon"] is not None for item in spending)
    for dot in dots:
        assert 0 <= float(dot.get("cx", "")) <= 760 and 0 <= float(dot.get("cy", "")) <= 300
    words = " ".join(drawn.itertext())
    assert ("no bound from here on" in words) == any(
        item["own"] and item["epsilon"] is None for item in spending
    )
    assert ("ceiling" in words) == (ceiling is not None and bool(spending))


def test_time_does_not_go_back_and_spending_is_in_order() -> None:
    paid = [
        {"recorded_at": at, "study": "s", "round": n, "cost": "", "own": True, "epsilon": float(n)}
        for n, at in enumerate((5_000, 1_000, 9_000), start=1)
    ]
    drawn = ET.fromstring(svg([account(paid, 3.0, 4.0)]))
    dots = [dot for dot in drawn.iter(f"{SVG}circle") if dot.find(f"{SVG}title") is not None]
    across, down = ([float(dot.get(key, "")) for dot in dots] for key in ("cx", "cy"))
    assert across == sorted(across) and down == sorted(down, reverse=True)


def test_nothing_is_said_where_nothing_is() -> None:
    assert "No data set is registered" in svg([])
    assert "Nothing was spent yet" in svg([account([], 0.0, 4.0)])
