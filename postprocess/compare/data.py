"""The report for programs: JSON with everything, CSV with a line for each run."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from launcher.config.secrets import redact
from postprocess.compare import published
from postprocess.compare.analysis import GroupReport, Report, VariantReport
from postprocess.compare.metrics import EQUAL_COST, EQUAL_STEPS, value
from postprocess.compare.runs import Run, flatten, is_number
from postprocess.compare.statistics import Interval, Sample

FORMAT = 1
_FIRST_COLUMNS = ("run", "excluded", "group", "variant", "base", "seed", EQUAL_STEPS, EQUAL_COST)


def to_json(report: Report) -> str:
    """The whole report."""
    content = {
        "format": FORMAT,
        "groups": [_group(group) for group in report.groups],
        "excluded": [asdict(each) for each in report.excluded],
        "notes": list(report.notes),
        "published": published.as_data(),
    }
    return json.dumps(_clean(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(report: Report) -> str:
    """A line for each run, excluded ones with their reason and no numbers. Settings are config.*, times in seconds."""
    rows = [
        _line(group, variant, run) for group in report.groups for variant in group.variants for run in _runs(variant)
    ]
    rows += [{"run": each.name, "excluded": each.reason} for each in report.excluded]
    columns = dict.fromkeys(_FIRST_COLUMNS) | dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _runs(variant: VariantReport) -> tuple[Run, ...]:
    return variant.variant.runs


def _line(group: GroupReport, variant: VariantReport, run: Run) -> dict[str, Any]:
    first = {
        "run": run.name,
        "group": group.number,
        "variant": variant.label,
        "base": variant.base,
        EQUAL_STEPS: value(run, EQUAL_STEPS, group.equal),
        EQUAL_COST: value(run, EQUAL_COST, group.equal),
    }
    settings = {key: _cell(each) for key, each in flatten(run.config, "config.").items()}
    results = {key: _cell(each) for key, each in flatten(run.train).items()}
    return {**results, **settings, **first, "seed": run.seed}


def _cell(each: Any) -> Any:
    """Lists and truth values as in JSON; what is null there is empty."""
    found = _clean(each)
    return json.dumps(found, ensure_ascii=False) if isinstance(found, (list, bool)) else found


def _group(group: GroupReport) -> dict[str, Any]:
    return {
        "number": group.number,
        "agreed": group.group.agreed,
        "separation": list(group.separation),
        "notes": list(group.notes),
        "equal_step": group.equal.step,
        "equal_budget": None if group.equal.budget is None else asdict(group.equal.budget),
        "variants": [_variant(variant) for variant in group.variants],
    }


def _variant(variant: VariantReport) -> dict[str, Any]:
    return {
        "label": variant.label,
        "base": variant.base,
        "settings": variant.variant.settings,
        "metrics": {
            key: None if found is None else _sample(found, variant.ratios.get(key))
            for key, found in variant.samples.items()
        },
        "saved": {key: _interval(found) for key, found in variant.savings.items()},
        "gained": {key: _interval(found) for key, found in variant.gains.items()},
        "runs": [_run(run) for run in variant.variant.runs],
    }


def _sample(found: Sample, ratio: Interval | None) -> dict[str, Any]:
    numbers = {"median": found.median, "low": found.low, "high": found.high, "values": list(found.values)}
    return {**numbers, "ratio": _interval(ratio)}


def _interval(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _run(run: Run) -> dict[str, Any]:
    evaluations = [asdict(each) for each in run.evaluations]
    return {"run": run.name, "seed": run.seed, "train": run.train, "evaluations": evaluations}


def _clean(found: Any) -> Any:
    """The same for a file that may be passed on: null for numbers that JSON doesn't have, no tokens, no passwords."""
    if isinstance(found, dict):
        return {str(key): _clean(each) for key, each in found.items()}
    if isinstance(found, (list, tuple)):
        return [_clean(each) for each in found]
    if isinstance(found, str):
        return redact(found)
    return None if isinstance(found, float) and not is_number(found) else found
