"""
The load generator: fetches chunks as players do, and reports the results.

A run goes `lines.py` (what a `.load` file says) -> `plan.py` (who fetches what, and when) -> `engine.py` (fetches, by
`web.py` or `echo.py`; `player.py` decides for a player) -> `records.py` (one per fetch) -> `figures.py` (sums) ->
`table.py`, `document.py`, `report.py` (what people see). `worker.py` is one client host of the testbed, `command.py`
the program.
"""
