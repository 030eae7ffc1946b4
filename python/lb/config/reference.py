"""
The page `docs/configuration.md`: every key with all that is declared about it. `make docs` writes it.

Like the template and the schema it is made from the models; a test holds the committed page to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from lb.config.model import Config
from lb.fields.key import Declared, keys_of
from lb.fields.schema import choices, form, kind, properties_of, toml, unit, value_range
from lb.policies.registry import POLICIES
from lb.policies.user import Settings

PAGE = Path("docs/configuration.md")
HEAD = """\
# Configuration

Every key of the configuration file, TOML 1.0. `lb init` writes a commented file to start from, `lb config schema` a
JSON Schema for editors, and `lb check FILE` reports every mistake with its line, its column and a hint. This page is
made from the declarations in `python/lb/config/model.py` and `python/lb/policies/` (`make docs`).

- Unknown keys are errors. Durations carry a unit: `"500ms"`, `"30s"`, `"2h"` (ns, us, ms, s, m, h).
- *Reload* says when a changed value takes effect: `live` keys with `lb reload` or SIGHUP, `restart` keys with the next
  start; until then each reload says so ([control.md](control.md)).
- A file with one `[[interface]]` and one `[[service]]` is complete; everything else has a default.
"""
POLICIES_HEAD = """
## Options of policies

`policy` is a name, or a table of a name and options: `policy = { name = "maglev", table_size = 65537 }`. What each
policy does is in [policies.md](policies.md). A policy that is not listed has no options.
"""
COLUMNS = ("key", "type", "default", "values", "reload", "what it is", "example")


class _Section(NamedTuple):
    """A table of the page. `title`: its heading; `about`: a sentence below it; `model`: whose keys it has."""

    title: str
    about: str
    model: type


def page() -> str:
    """Return the page as Markdown."""
    sections = (_Section("Top of the file", "Above the first `[table]`.", Config), *_tables(Config, ""))
    parts = [HEAD, *map(_section, sections), POLICIES_HEAD, *map(_section, _policies())]
    return "".join(parts)


def _tables(model: type[BaseModel], path: str) -> Iterator[_Section]:
    for declared in keys_of(model):
        if declared.table is None:
            continue
        inner = f"{path}.{declared.name}".lstrip(".")
        title = f"[[{inner}]]" if declared.is_array else f"[{inner}]"
        yield _Section(f"`{title}`", f"{declared.key.description}.", declared.table)
        yield from _tables(declared.table, inner)


def _policies() -> Iterator[_Section]:
    for name, policy in sorted(POLICIES.items()):
        if keys_of(policy):
            yield _Section(f"`{name}`", first_line(policy), policy)
    yield _Section("A policy of your own", "Beside the options that it declares itself.", Settings)


def first_line(documented: type) -> str:
    """Return the first line of a docstring."""
    return (documented.__doc__ or "").strip().partition("\n")[0]


def _section(section: _Section) -> str:
    level = "##" if issubclass(section.model, BaseModel) else "###"
    rows = [_row(section.model, declared) for declared in keys_of(section.model) if declared.table is None]
    table = "\n".join(_cells(cells) for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows))
    return f"\n{level} {section.title}\n\n{section.about}\n\n{table}\n"


def _row(model: type, declared: Declared) -> tuple[str, ...]:
    schema = properties_of(model)[declared.name]
    default = _code(toml(schema["default"])) if "default" in schema else declared.key.unset
    example = declared.key.example if declared.key.example is not None else schema.get("default")
    allowed = ", ".join(map(_code, choices(schema))) or ", ".join(filter(None, (value_range(schema), form(schema))))
    return (
        _code(declared.name),
        f"{kind(schema)}, {unit(schema)}".removesuffix(", "),
        "(required)" if declared.required else default,
        allowed,
        declared.key.reload,
        "; ".join(filter(None, (declared.key.description, declared.key.note))),
        _code(toml(example)),
    )


def _code(text: str) -> str:
    return f"`{text}`"


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else PAGE).write_text(page(), encoding="utf-8")
