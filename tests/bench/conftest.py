"""Lets the tests here import the benchmark's modules, which find one another as scripts in one folder do."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
