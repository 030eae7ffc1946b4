"""
The flow table as rows, in the admin API: what `lb flows dump` reads and `lb flows load` writes, a part at a time
(`lb.control.api.stored`). The balancer opens no file for it: that is the command's, with the caller's rights.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from lb.control.api.handlers import only_number, require_only
from lb.control.api.listener import Handler, Method
from lb.control.api.paths import FLOW_LOAD, FLOW_NAMES, FLOW_ROWS
from lb.control.kept_names import NamesPart
from lb.control.stored_flows import StoredFlows
from lb.errors import RequestError


class FlowRows:
    """
    The resources.

    Args:
        flows: of the running balancer.
    """

    def __init__(self, flows: StoredFlows) -> None:
        self._flows = flows

    def handlers(self) -> dict[tuple[Method, str], Handler]:
        """Return the handler of each method and resource."""
        return {("GET", FLOW_NAMES): self.names, ("GET", FLOW_ROWS): self.rows, ("POST", FLOW_LOAD): self.load}

    async def names(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return the layout of rows, and what the ids in them mean now."""
        layout = self._flows.layout()
        names = await asyncio.to_thread(self._flows.names)
        return {"layout": layout, "names": names.model_dump(mode="json")}

    async def rows(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return rows from `place` on, in base64, and the `next` place; None: that was all."""
        require_only(params, "place")
        rows, following = await asyncio.to_thread(self._flows.rows, only_number(params, "place", 0))
        return {"rows": base64.b64encode(rows).decode(), "next": following}

    async def load(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Take over the flows of `rows` of a `layout`; `names`: what the ids in them mean."""
        require_only(params, "layout", "names", "rows")
        layout, encoded = params.get("layout"), params.get("rows")
        if not isinstance(layout, str) or not isinstance(encoded, str):
            raise RequestError("layout, rows: text is needed")
        try:
            rows = base64.b64decode(encoded, validate=True)
            names = NamesPart.model_validate_json(json.dumps(params.get("names"))).names()
        except (binascii.Error, ValueError):
            raise RequestError("rows or names cannot be read") from None
        return (await asyncio.to_thread(self._flows.load, layout, names, rows))._asdict()
