"""Result: what an evaluation found. Saved as plain files, from which figures can be drawn again.

A saved result is a folder with `result.json` (name, scalars, rows, provenance), `table.csv` (the
rows) and `arrays.safetensors` (curves, histograms, matrices).

Limits: JSON has no NaN and no infinity: both are written as null, and null reads back as NaN.
"""

import csv
import io
import itertools
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor

from sae_kit.files import load_tensors, save_tensors, write_atomic

JSON, TABLE, ARRAYS = "result.json", "table.csv", "arrays.safetensors"
GAP = "  "
"""Between the columns of a printed table."""


@final
@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value to compare by
class Result:
    """The findings of one evaluation.

    Raises:
        TypeError: a scalar, row or array is of a type that cannot be saved; the message names it.
    """

    name: str
    """The evaluation's name."""
    scalars: Mapping[str, int | float] = field(default_factory=dict)
    """Summary figures."""
    rows: Sequence[Mapping[str, Any]] = ()
    """A table: one mapping of column -> str, bool, int or float per row."""
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    """Whatever figures need beyond the table."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: see config.provenance, and what was evaluated on what."""

    def __post_init__(self) -> None:
        # Here, not in save(): an hour's evaluation should not fail at its last line.
        for name, value in self.scalars.items():
            if not isinstance(value, int | float):
                raise TypeError(f"scalars[{name!r}]: {type(value).__name__} is not a number")
        for i, row in enumerate(self.rows):
            for column, value in row.items():
                if not isinstance(value, bool | int | float | str):
                    kind = type(value).__name__
                    raise TypeError(f"rows[{i}][{column!r}]: {kind} is not a number or a string")
        for name, array in self.arrays.items():
            if not isinstance(array, Tensor):
                raise TypeError(f"arrays[{name!r}]: {type(array).__name__} is not a tensor")

    def save(self, folder: Path) -> None:
        """Write the result into `folder`, made if absent. An older result there is replaced.

        Raises:
            OSError: the disk refused.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / ARRAYS, self.arrays)
        write_atomic(folder / TABLE, self._csv())
        plain = {
            "name": self.name,
            "scalars": _to_json(self.scalars),
            "rows": _to_json(self.rows),
            "provenance": _to_json(self.provenance),
        }
        # Last, so that a folder with a result.json has the rest.
        write_atomic(folder / JSON, json.dumps(plain, indent=2, allow_nan=False) + "\n")

    @staticmethod
    def load(folder: Path) -> "Result":
        """The result saved in `folder`.

        Raises:
            ValueError: there is none, or a file of it is damaged; the message names the file.
        """
        file = Path(folder) / JSON
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            return Result(
                name=plain["name"],
                scalars=_null_to_nan(plain["scalars"]),
                rows=tuple(_null_to_nan(row) for row in plain["rows"]),
                arrays=load_tensors(Path(folder) / ARRAYS),
                provenance=plain["provenance"],
            )
        except OSError as error:
            raise ValueError(f"{file}: no result there: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: damaged: {error}") from error
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a result: {error!r}") from error

    def table(self, width: int | None = None) -> str:
        """The rows as aligned text, numbers to the right; the scalars where there are no rows.

        Args:
            width: characters of a line. A wider table is cut into several, one below the other, all
                beginning with the leading columns of text, or the first; None = it is not cut.
        """
        rows = self.rows
        if not rows:
            rows = [{"scalar": name, "value": value} for name, value in self.scalars.items()]
        columns = [_aligned(column, rows) for column in _columns(rows)]
        n_leading = max(1, len(list(itertools.takewhile(operator.itemgetter(1), columns))))
        leading, others = columns[:n_leading], columns[n_leading:]
        parts: list[list[list[str]]] = [[cells for cells, _ in leading]]
        for cells, _ in others:
            if width is not None and len(parts[-1]) > n_leading:
                taken = sum(len(column[0]) + len(GAP) for column in parts[-1])
                if taken + len(cells[0]) > width:
                    parts.append([column for column, _ in leading])
            parts[-1].append(cells)
        return "\n\n".join(
            "\n".join(GAP.join(line).rstrip() for line in zip(*part, strict=True)) for part in parts
        )

    def _csv(self) -> str:
        if not self.rows:
            return ""
        text = io.StringIO()
        writer = csv.DictWriter(text, _columns(self.rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, in the order they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _aligned(column: str, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """Name and values of a column as cells of one width, and whether it is text."""
    cells = [column, *(_cell(row.get(column, "")) for row in rows)]
    width, is_text = max(map(len, cells)), any(isinstance(row.get(column), str) for row in rows)
    return [cell.ljust(width) if is_text else cell.rjust(width) for cell in cells], is_text


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _null_to_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}
