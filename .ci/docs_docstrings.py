"""Docstrings as Markdown: examples as code, and the lines `option: meaning` as a list."""

import re

import griffe

OPTION = re.compile(r"^( *)(\w+(?:, \w+)*): +(\S.*)$")


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that the reference shows."""

    def on_object(self, *, obj, **kwargs):
        """Called for each object that is read."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text):
    """One docstring as Markdown."""
    lines, fenced = [], False
    for line in text.splitlines():
        starts = line.lstrip().startswith(">>>")
        if starts and not fenced:
            lines += ["", "```pycon"]
            fenced = True
        elif fenced and not line.strip():
            lines.append("```")
            fenced = False
        option = None if fenced else OPTION.match(line)
        if option and not option[1]:
            if lines and lines[-1].strip() and not lines[-1].startswith(("- ", "    ")):
                lines.append("")
            line = f"- **{option[2]}**: {option[3]}"
        lines.append(line)
    return "\n".join([*lines, *(["```"] if fenced else [])])
