"""Values that the tests of the encoders send and look for again."""

from __future__ import annotations

TRACE, ROOT, CHILD, ELSEWHERE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7", "a" * 16
START, END = 1_700_000_000_123_456_789, 1_700_000_001_000_000_001

VALUES = [
    ("text", 'naïve ☃ "quoted" \\ \n\x00'),
    ("empty", ""),
    ("yes", True),
    ("no", False),
    ("zero", 0),
    ("one", 1),
    ("below", -1),
    ("large", 2**62),
    ("most", -(2**63)),
    ("half", 0.5),
    ("whole", 1.0),
]
