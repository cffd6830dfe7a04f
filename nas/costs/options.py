"""Options of the costs that come with raynas. Imports pydantic alone: a mistake is told before torch is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from nas.config.section import CostOptions, Kind
from nas.tasks.places import roots


class LatencyOptions(CostOptions):
    """Milliseconds of one inference, predicted from a table."""

    table: Annotated[str, Kind.FREE] = Field(
        description="the file that nas latency has written; it may lie elsewhere at a resume, its contents stay"
    )

    def locate(self) -> Path:
        looked = list(dict.fromkeys(path.absolute() for path in self._places()))
        if (found := next((path for path in looked if path.is_file()), None)) is None:
            raise FileNotFoundError(
                f"the table of latencies {self.table!r} (search.costs) is not there; looked for "
                f"{', '.join(map(str, looked))}. nas latency EXPERIMENT writes one; one that was made elsewhere is "
                "found by its path, or in a folder that RAYNAS_DATA names"
            )
        return found

    def _places(self) -> list[Path]:
        return [Path(self.table).expanduser(), *(root / self.table for root in roots())]
