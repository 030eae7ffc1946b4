"""How a mistake in a file is shown: where and what, the line itself with a caret, a hint. Plain text, no colours."""

from __future__ import annotations


def block(name: str, source: str, line: int, column: int, message: str, hint: str = "") -> str:
    """
    Return what is printed for a mistake.

    Args:
        name: of the file.
        source: all of its text.
        line: from 1.
        column: from 1, in characters.
        message: what is wrong.
        hint: how to fix it; empty when there is nothing to say.
    """
    lines = source.split("\n")
    text = lines[line - 1] if line <= len(lines) else ""
    shown = "".join(char if char.isprintable() or char == "\t" else "?" for char in text)
    indent = "".join("\t" if char == "\t" else " " for char in text[: column - 1])
    rows = [f"{name}:{line}:{column}: {printable(message)}", f"{line:5} | {shown}", f"      | {indent}^"]
    return "\n".join([*rows, f"  hint: {printable(hint)}"] if hint else rows)


def printable(text: str) -> str:
    """Return a text with what does not print (line feeds, control sequences) escaped: it contains values."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
