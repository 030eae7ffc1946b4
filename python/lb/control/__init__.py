"""
The control side: the running balancer (`daemon`), what it tells (`status`, `admin`), and how commands ask it
(`client`).
"""
