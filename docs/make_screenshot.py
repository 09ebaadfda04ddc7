"""Pictures of a sweep in MLflow's own pages, for docs/tracking.md.

    python docs/make_screenshot.py --store sqlite:///outputs/mlflow.db --sweep SWEEP_DIR

serves the store on loopback, opens the pages in headless Chromium, sets them up as a person would, and writes
docs/mlflow_sweep.png and docs/mlflow_compare.png. It needs `apt-get install chromium chromium-driver` and
`pip install "trntune[docs]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

DOCS = Path(__file__).resolve().parent
METRICS = ("samples_per_second", "trainable_params", "wall_seconds")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
WAIT_SECONDS = 60.0
# The values of a metric where its row is in sight, else one step on through the table. MLflow's column of names follows
# the values one movement late: until both are level, the table is only nudged.
FIND_ROW = """
const [names, values, name] = arguments, left = names.parentElement, right = values.parentElement;
const row = [...names.children].find(row => row.textContent === name);
const top = row ? parseFloat(row.style.top) - left.scrollTop : -Infinity;
if (Math.abs(left.scrollTop - right.scrollTop) > 5) right.scrollTop += right.scrollTop > 1 ? -1 : 1;
else if (top > -5 && top + row.clientHeight < left.clientHeight + 5)
  return [...values.children].filter(cell => cell.style.top === row.style.top).map(cell => cell.textContent);
else right.scrollTop = right.scrollTop + right.clientHeight > right.scrollHeight - 5 ? 0 : right.scrollTop + 150;
return [];
"""


def until(found: Callable[[], Any]) -> Any:
    """The first true answer, asked for until WAIT_SECONDS are over; pages fill themselves in several steps."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            if answer := found():
                return answer
        except (OSError, WebDriverException):
            if time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing within {WAIT_SECONDS:.0f} s")
        time.sleep(0.2)


@contextmanager
def mlflow_ui(store: str) -> Iterator[str]:
    """MLflow's pages over ``store`` on a free port of loopback; yields their address once they answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments = ["ui", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *arguments],
        # Its job runner would start seven processes more.
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: urllib.request.urlopen(f"{address}/health", timeout=5).status == 200)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@contextmanager
def chromium(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """A headless browser without a past. Raises FileNotFoundError where none is installed."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise FileNotFoundError("Chromium is not installed: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        page = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield page
        finally:
            page.quit()


def click(page: webdriver.Chrome, xpath: str) -> WebElement:
    """Click what ``xpath`` names once it can be clicked; returns it."""

    def clicked() -> WebElement:
        element = page.find_element(By.XPATH, xpath)
        element.click()
        return element

    found: WebElement = until(clicked)
    return found


def make_room(page: webdriver.Chrome) -> None:
    """Close the assistant and fold the sidebar; they stay so for the browser's session."""
    click(page, '//*[@data-component-id="mlflow.assistant.chat_panel.close"]')
    click(page, '//*[@data-component-id="mlflow_header.toggle_sidebar_button"]')


def compare_address(address: str, experiment: str, run_ids: list[str]) -> str:
    """MLflow's page that puts runs beside each other."""
    runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([experiment]))
    return f"{address}/#/compare-runs?runs={runs}&experiments={experiments}"


def show_comparison(page: webdriver.Chrome) -> None:
    """Plot what PEFT saves, fold the parameters, and leave the metrics that differ."""
    click(page, '//button[normalize-space()="Clear All"]')
    for title, wanted in (("Parameters:", ("method.name",)), ("Metrics:", METRICS)):
        field = f'//*[text()="{title}"]/following::input[1]'
        for name in wanted:
            click(page, field).send_keys(name)
            click(page, f'//*[contains(@class,"select-item-option")][@title="{name}"]')
            page.find_element(By.XPATH, field).send_keys(Keys.ESCAPE)
    click(page, '//*[contains(@class, "collapse-header")][normalize-space()="Parameters"]')
    click(page, '//button[@aria-label="Metrics - Show diff only"]')
    show_metric(page, METRICS[-1])
    scroll_to(page, '//*[starts-with(text(), "Comparing")]')


def scroll_to(page: webdriver.Chrome, xpath: str) -> None:
    """Scroll the page until what ``xpath`` names is at its top."""
    page.execute_script("arguments[0].scrollIntoView()", page.find_element(By.XPATH, xpath))


def show_metric(page: webdriver.Chrome, name: str) -> list[str]:
    """Scroll the table of metrics to one of them, and return its values, a run each. Only rows in sight exist."""
    table = '//*[contains(@class, "collapse-item")][normalize-space(*[1])="Metrics"]'

    def values() -> list[str]:
        names, cells = page.find_elements(By.XPATH, f'{table}//*[@role="rowgroup"]')
        found: list[str] = page.execute_script(FIND_ROW, names, cells, name)
        return found

    shown: list[str] = until(values)
    return shown


def show_sweep(page: webdriver.Chrome, run_id: str) -> None:
    """Unfold the sweep and choose the columns."""
    click(page, f'//a[contains(@href, "{run_id}")]/ancestor::*[@role="gridcell"]//button')
    click(page, '//*[@data-testid="column-selection-dropdown"]')
    search = '//input[@placeholder="Search columns"]'
    for name in ("Dataset", "Source", "Models", *METRICS):
        click(page, search).send_keys(Keys.CONTROL, "a")
        page.find_element(By.XPATH, search).send_keys(name)
        click(page, f'//*[contains(@class, "tree-title")][normalize-space()="{name}"]')
    page.find_element(By.XPATH, search).send_keys(Keys.ESCAPE)
    for name in METRICS:
        edge = f'//*[@role="columnheader"][normalize-space()="{name}"]//*[contains(@class, "header-cell-resize")]'
        ActionChains(page).double_click(until(partial(page.find_element, By.XPATH, edge))).perform()


def picture(page: webdriver.Chrome, file: Path) -> None:
    """Write what the window shows, without the pointer's traces."""
    time.sleep(2)  # charts and rows slide to their places
    page.save_screenshot(str(file))
    print(f"{file} ({file.stat().st_size / 1000:.0f} kB)")


def make(store: str, sweep: Path, output: Path) -> None:
    """Both pictures."""
    from mlflow import MlflowClient

    parent = (json.loads((sweep / "sweep.json").read_text(encoding="utf-8")).get("mlflow") or {}).get("run_id")
    if parent is None:
        raise FileNotFoundError(f"{sweep / 'sweep.json'} names no run of MLflow: the sweep was not tracked")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(sweep.glob("*/stages/train.json"))]
    run_ids = [result["mlflow"]["run_id"] for result in results]
    experiment = MlflowClient(tracking_uri=store).get_run(parent).info.experiment_id
    with mlflow_ui(store) as address, chromium(1400, 1560) as page:
        page.get(compare_address(address, experiment, run_ids))
        make_room(page)
        show_comparison(page)
        picture(page, output / "mlflow_compare.png")
        page.set_window_size(1400, 560)
        page.get(f"{address}/#/experiments/{experiment}/runs")
        show_sweep(page, parent)
        picture(page, output / "mlflow_sweep.png")


def main() -> None:
    """Process entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="the store's address, for example sqlite:///outputs/mlflow.db")
    parser.add_argument("--sweep", required=True, type=Path, help="the sweep's directory, which holds sweep.json")
    parser.add_argument("--output", type=Path, default=DOCS, help="where the pictures are written")
    arguments = parser.parse_args()
    try:
        make(arguments.store, arguments.sweep.absolute(), arguments.output)
    except FileNotFoundError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
