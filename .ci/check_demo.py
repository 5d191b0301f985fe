"""The demo's JSON has what it promises: all hospitals, budgets kept, every round with all contributors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

report = json.loads(Path(sys.argv[1]).read_text())
problems = []
for site in report["sites"]:
    if not 0 < site["epsilon"] <= report["epsilon_ceiling"]:
        problems.append(f"{site['name']}: epsilon {site['epsilon']} of {report['epsilon_ceiling']}")
    if not (0.3 < site["auc_federated"] <= 1 and 0.3 < site["auc_local"] <= 1):
        problems.append(f"{site['name']}: AUC {site['auc_local']} alone, {site['auc_federated']} federated")
    if site["patients"] < 1 or not 0 < site["delta"] < 1 / (10 * site["patients"]):
        problems.append(f"{site['name']}: delta {site['delta']} for {site['patients']} patients")
if len(report["sites"]) != 4:
    problems.append(f"{len(report['sites'])} sites")
for entry in report["rounds"]:
    if len(entry["contributors"]) != 4:
        problems.append(f"round {entry['round']} has contributors {entry['contributors']}")
if report["audit"]["sums_added_up"] != len(report["rounds"]):
    problems.append(f"audit: {report['audit']}")
if not report["rounds"]:
    problems.append("no rounds")
print(
    "\n".join(problems) or f"demo: {len(report['rounds'])} rounds, {len(report['sites'])} sites, as promised"
)
sys.exit(bool(problems))
