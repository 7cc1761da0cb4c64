"""A headless Chromium for tests of pages, driven by Selenium; where there is none, a reason."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LAPTOP = (1366, 768)


def missing() -> str:
    """What keeps a page from being tested here; empty if nothing does."""
    if find_spec("selenium") is None:
        return "selenium is not installed: pip install -e .[dev]"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "no chromium and chromedriver on the path: apt-get install chromium-driver"
    return ""


@contextmanager
def chromium(size: tuple[int, int] = LAPTOP, *, dark: bool = False) -> Iterator[Any]:
    """A browser whose page is of this size, in pixels, and which keeps what its console says."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",  # containers run as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--window-size={size[0]},{size[1]}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        # The window's frame is not part of the page.
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def open_page(driver: Any, site: Path, address: str = "") -> None:
    """Open a page of a site in a folder, and wait until it is drawn.

    Raises:
        AssertionError: it is not drawn within half a minute.
    """
    driver.get((site / "index.html").absolute().as_uri() + address)
    wait_for(driver, address)


def wait_for(driver: Any, address: str) -> None:
    """Wait until the page of this address is drawn, or says that it cannot be."""
    drawn = driver.execute_async_script(
        """
        const [address, done] = arguments, start = performance.now();
        (function look() {
          const is = document.documentElement.dataset.ready;
          if (is === address || document.querySelector(".notice[role=alert]")) done(true);
          else if (performance.now() - start > 30000) done(false);
          else setTimeout(look, 10);
        })();
        """,
        address,
    )
    assert drawn, f"{address!r} is not drawn: {complaints(driver)}"


def complaints(driver: Any) -> list[str]:
    """Errors and warnings in the page's console since it was last asked."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
