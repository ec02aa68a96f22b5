"""Reports in headless Chromium."""


def open_page(browser, path, width: int) -> None:
    """Open a page at a width, and check that all is loaded, nothing sticks out, and the console is silent."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(path.as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    # What is folded is looked at too
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    loaded = browser.execute_script("return [...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert loaded and all(loaded)
    # Wide tables scroll in their own box
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # On narrow screens pictures fill the page, and on wide ones the widest does
    widths = browser.execute_script("return [...document.images].map(image => image.clientWidth)")
    assert min(widths) >= 300
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []
