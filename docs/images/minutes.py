"""Accuracy over minutes of training, from the table in docs/results.md: python docs/images/minutes.py."""

from __future__ import annotations

import re
from pathlib import Path

from unveil.reporting.charts import Line, chart_file

HERE = Path(__file__)
HEAD = "| minutes | recipe | epochs | seeds |"


def drawn() -> str:
    """The picture: a chart of each protocol, a line of each recipe, and dashed ones of what was not trained."""
    text = (HERE.parents[1] / "results.md").read_text(encoding="utf-8")
    table = re.search(rf"^{re.escape(HEAD)}.*\n(?:\|.*\n)+", text, re.M)
    assert table, f"docs/results.md has no table that begins {HEAD}"
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table[0].splitlines())
    minutes = [float(row[0]) for row in rows if row[0]]
    ends = (min(minutes), max(minutes))
    charts = []
    for column, protocol in list(enumerate(head))[4:]:
        lines = []
        for colour, name in enumerate(dict.fromkeys(row[1] for row in rows)):
            own = [(row[0], float(row[column].split()[0])) for row in rows if row[1] == name]
            if own[0][0]:
                lines.append(Line(name, [float(x) for x, _ in own], [score for _, score in own], colour))
            else:
                lines.append(Line(name, ends, (own[0][1], own[0][1]), colour, is_dashed=True))
        charts.append((f"{protocol}: accuracy, %", lines))
    return chart_file(charts, x_label="minutes of steps", is_log_x=True)


if __name__ == "__main__":
    HERE.with_suffix(".svg").write_text(drawn(), encoding="utf-8")
