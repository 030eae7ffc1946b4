"""
The testbed: five clients, a router and three servers in network namespaces, joined as in the course that flowlb grew
from.

`topology.py` says what there is, `build.py` makes it with `isolation.py` and `ethtool.py`, `lifecycle.py` starts and
stops it, `state_directory.py` writes that down for others, `manage.py` keeps one until `lb testbed down`. `apache.py`,
`content.py` and `serve.py` are its servers.
"""
