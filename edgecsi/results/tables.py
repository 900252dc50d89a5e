"""Tables of docs/results.md that stand for themselves: knobs, shipped networks, estimated cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgecsi.report.text import number
from edgecsi.results.bars import held_against, stale
from edgecsi.results.files import Json
from edgecsi.results.scenarios import CHANGES


def knobs_table(entry: Json | None) -> str:
    if entry is None:
        return "Not searched yet."
    rows = [["what", "default knobs µs", "best knobs µs", "gain", "validity"]]
    for row in entry["rows"].values():
        if "error" in row:
            rows.append([row["title"], why_not(row), "", "", ""])
            continue
        gain = 1 - row["best_us"] / row["default_us"]
        state = "; ".join([row["validity"]["state"], *row["validity"]["reasons"]])
        rows.append([row["title"], number(row["default_us"]), number(row["best_us"]), f"{gain:.0%}", state])
    return markdown(rows)


def before_table(entry: Json | None) -> str:
    """Today's code against an earlier commit's."""
    rows = [["what", "commit", "then µs", "today µs", "ratio (95 %)", "bar", "reached", "validity"]]
    for change in CHANGES:
        row = (entry or {"rows": {}})["rows"].get(change.name)
        bar = f"≤ {change.bar:g}"
        if row is None or "error" in row:
            rows.append(
                [change.title, "" if row is None else row["commit"][:7], "", "", why_not(row), bar, "", ""]
            )
            continue
        found = row["ratio"]
        words = [row["validity"]["state"], *row["validity"]["reasons"]]
        words += ["quick"] if row["quick"] else []
        words += ["measured before a change"] if stale(row) else []
        rows.append(
            [
                change.title,
                row["commit"][:7],
                number(row["before_us"]),
                number(row["today_us"]),
                f"**{found['ratio']:.3f}** ({found['interval']['low']:.3f}-{found['interval']['high']:.3f})",
                bar,
                held_against(found["ratio"], change.bar, row),
                "; ".join(words),
            ]
        )
    return markdown(rows)


def shipped_table(entry: Json | None) -> str:
    if entry is None:
        return "Not verified yet."
    rows = [
        [
            "network",
            "built for",
            "run on",
            "samples",
            "NMSE or BER",
            "PyTorch",
            "difference dB",
            "equal",
            "library kB",
            "reached",
        ]
    ]
    for result in entry["results"].values():
        head = [result["model"], result["target"], result["cpu"]]
        if "error" in result:
            rows.append([*head, "", why_not(result), "", "", "", "", "no"])
            continue
        apart = abs(result["difference_db"])
        reached = "yes" if apart <= entry["tolerance_db"] else "no"
        rows.append(
            [
                *head,
                str(result["samples"]),
                f"{result['edgecsi']:.4g}",
                f"{result['pytorch']:.4g}",
                f"{apart:.1g}",
                _equal(result["differences"]),
                f"{result['library_bytes'] / 1e3:,.0f}",
                f"{reached}, before a change" if result["outdated"] else reached,
            ]
        )
    return markdown(rows)


def _equal(differences: Mapping[str, float]) -> str:
    equal = [name for name, apart in differences.items() if apart == 0]
    largest = max(differences.values(), default=0.0)
    return "; ".join([", ".join(equal) or "none", *([f"{largest:.0e}"] if largest else [])])


def cycles_table(entry: Json | None) -> str:
    if entry is None or "error" in entry:
        return f"{why_not(entry).capitalize()}."
    rows = [["CPU", "layer", "kernel", "instructions", "cycles", "MACs", "MACs per cycle", "thousand cycles"]]
    for row in entry["loops"]:
        estimated = row["thousand_cycles"]
        rows.append(
            [
                row["cpu"],
                row["layer"],
                row["kernel"],
                str(row["instructions"]),
                f"{row['cycles']:.1f}",
                str(row["macs"]),
                f"{row['macs'] / row['cycles']:.1f}",
                "" if estimated is None else f"{estimated:.1f}",
            ]
        )
    sums = [
        f"{cpu}: {sum(r['thousand_cycles'] or 0 for r in entry['loops'] if r['cpu'] == cpu):.0f} thousand"
        for cpu in dict.fromkeys(row["cpu"] for row in entry["loops"])
    ]
    return (
        f"An estimate by {entry['tool']} of the innermost loop that multiplies most, for {entry['model']}: "
        "instructions, cycles and multiply-adds of one pass of the loop, everything in the L1 cache; the "
        f"last column is that for all multiply-adds of the layer. Sums: {', '.join(sums)}. "
        f"{entry['notes']}\n\n" + markdown(rows)
    )


def why_not(entry: Json | None) -> str:
    return "not measured" if entry is None else f"failed: {(entry['error'][1] or entry['error'][0])[:120]}"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first row being its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    columns = lines[0].replace("\\|", "").count("|") - 1
    return "\n".join([lines[0], "|" + "---|" * columns, *lines[1:]])
