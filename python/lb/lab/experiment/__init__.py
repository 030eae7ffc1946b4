"""
Experiments: policies over the same load, in turns, compared in one report.

`file.py` reads what to do, `run.py` runs it in a separate testbed, `result.py` adds up, `table.py` and `report.py`
show, `command.py` is `lb experiment run`.
"""
