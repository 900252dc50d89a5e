"""Where tuning measured what is best for a layer on this target, that takes the place of what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

from edgecsi.kernels.records import Record, Records
from edgecsi.kernels.variants import estimate
from edgecsi.lower.graph import Node
from edgecsi.lower.select_kernels import Choice
from edgecsi.target import Target


def use_records(chosen: Sequence[Choice | Node], target: Target, records: Records) -> None:
    """Give layers the kernel and knobs of their records; `why` names the record and what it gained."""
    for choice in chosen:
        if not isinstance(choice, Choice):
            continue
        found = records.choice(choice.op, target)
        if found is None:
            continue
        kernel, knobs, record = found
        choice.why = _why(record, choice.kernel.name == kernel.name and dict(choice.knobs) == dict(knobs))
        choice.kernel, choice.knobs = kernel, knobs
        choice.cost = estimate(kernel, choice.op, target, knobs)


def _why(record: Record, is_default: bool) -> str:
    unit, digits = ("µs", 2) if record.means == "measured" else ("M instructions", 3)
    text = f"{record.us:.{digits}f} {unit} {record.means}"
    if not is_default:
        text += f", the default {record.default_us:.{digits}f}"
    return f"{text} (record {record.id})"
