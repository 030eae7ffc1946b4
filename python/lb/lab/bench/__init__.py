"""
`lb bench`: measure this machine, with its peers side by side, in namespaces that it builds and removes.

`run.py` goes through the turns; `contestants/` say what the router does meanwhile, `measures/` what is measured;
`catalogue.py` and `targets.py` are data. A run ends as one document (`document.py`), which `table.py` and `report.py`
draw.
"""
