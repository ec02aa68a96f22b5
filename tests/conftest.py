"""Shared set-up of all tests."""

import torch as th

# Tiny networks gain nothing from more threads, and lose much where tests run side by side
th.set_num_threads(1)
