"""
Packet formats, one file per protocol: constants, byte offsets and builders. All integers are host values; `struct`
codes start with `!`.

First and last stage of the packet walk. Nothing here knows about services or flows. Reading a received frame, with its
checks, is the work of `lb.backends.python.parse`.
"""
