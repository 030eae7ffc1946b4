"""
Pictures for reports: geometry in Python, drawn as inline SVG by templates, in pages that fetch nothing and run nothing.

`axis.py` places values, `bars.py` and `plot.py` lay out charts, `page.py` renders. `page.html.j2` is the frame of every
page, `charts.html.j2` draws. Light and dark follow the reader's system.
"""
