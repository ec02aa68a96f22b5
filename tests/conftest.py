"""Shared set-up of all tests."""

import shutil
from pathlib import Path

import pytest
import torch as th
from hypothesis import settings

# Tiny networks gain nothing from more threads, and lose much where tests run side by side
th.set_num_threads(1)

# Nor do tests depend on how busy the machine is
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

#: Markers of the tests that start processes, commands or browsers, or measure and train for long, by folder or file.
MARKERS = {
    "distributed": "processes",
    "zoo": "commands",
    "lab": "laboratory",
    "test_benchmarks.py": "commands",
    "test_lectures.py": "documents",
    "test_docs.py": "documents",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``make test-fast`` leaves out."""
    for item in items:
        first = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        if first in MARKERS:
            item.add_marker(MARKERS[first])


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chrome = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    # A browser is no Python package, so that a developer may lack it; CI has it
    if chrome is None or driver is None:
        pytest.skip("no Chromium and ChromeDriver on this machine (.ci/run installs them)")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()
