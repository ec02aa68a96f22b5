"""Shared set-up of all tests."""

import torch as th
from hypothesis import settings

# Tiny networks gain nothing from more threads, and lose much where tests run side by side
th.set_num_threads(1)

# Nor do tests depend on how busy the machine is
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
