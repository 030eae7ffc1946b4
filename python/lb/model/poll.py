"""What a packet loop does while nothing comes: look again for a while where that pays, always, or sleep at once."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Poll: TypeAlias = Literal["adaptive", "busy", "sleep"]
POLLS: tuple[Poll, ...] = get_args(Poll)
DEFAULT_POLL: Poll = "adaptive"
