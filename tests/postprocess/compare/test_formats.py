"""Terminal, Markdown and HTML: what a reader sees, and what must not get into them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from postprocess.compare.__main__ import main
from tests.postprocess.conftest import report, written

HOSTILE = "<script src=//evil.example/x.js></script><img src=x onerror=alert(1)>&\"'|*b*$x$"


def full_and_ranks(make, ranks):
    return [make("full", "full"), *(make(f"r{rank}", config={"lora.r": rank}) for rank in ranks)]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_table_fits_the_terminal_repeats_the_base_and_cuts_nothing_off(make, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    ranks = (1, 2, 4, 8, 16, 32, 64)
    report(*full_and_ranks(make, ranks))
    printed = capsys.readouterr().out
    lines = printed.partition("\nnote:")[0].splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("──")]
    assert max(map(len, lines)) <= width
    assert "…" not in printed
    headings = ["\n".join(lines[rule - 3 : rule]) for rule in rules]
    assert len(rules) in {60: [7], 80: [4, 5, 6, 7], 200: [1, 2, 3]}[width]  # by how wide the timings are
    assert all("method=full" in heading for heading in headings)
    assert re.findall(r"lora\.r=(\d+)", "\n".join(headings)) == [str(rank) for rank in ranks]


def test_long_names_and_wide_numbers_are_folded_not_cut(make, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    report(make("full", "full"), make("a"), make("b", config={"lora.target_modules": targets}))
    printed = capsys.readouterr().out
    assert "…" not in printed
    # The label is whole in the list of runs, and in the heading once its folded lines are put together.
    assert f"lora.target_modules={'+'.join(targets)}" in printed


class Page(HTMLParser):
    """What a browser would load or run, the texts that it would show, and the page's ids."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "id":
                self.ids.append(value or "")
        found = dict(attrs)
        if tag == "svg":
            assert found["role"] == "img"
            self.images.append(found["aria-label"] or "")

    def handle_data(self, data):
        self.text += data


def page() -> Page:
    text = Path("out/report.html").read_text()
    found = Page()
    found.feed(text)
    assert "url(http" not in text
    assert "@import" not in text
    return found


def test_the_page_loads_nothing_and_its_plots_have_words(make):
    runs = [make(f"{method}{seed}", method, seed) for method in ("full", "lora") for seed in (0, 1)]
    runs.append(make("other", config={"training.max_length": 1024}))
    written(*runs)
    found = page()
    assert all(address.startswith("#") for address in found.addresses)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    assert {address[1:] for address in found.addresses} <= set(found.ids)
    assert len(found.images) == 10  # five for each of the two groups
    titles = ("Throughput", "Wall time by part", "Peak memory, host", "Held-out loss over trained tokens")
    for title in (*titles, "Held-out loss over training time"):
        assert sum(image.startswith(f"{title}. ") for image in found.images) == 2
    assert any("training time, s (no price is configured)" in image for image in found.images)
    assert "method=lora" in found.images[0]


def test_with_a_price_the_loss_is_plotted_over_dollars(make):
    price = {"accelerator.price_usd_per_hour": 36.0}
    written(make("full", "full", config=price), make("lora", config=price))
    [image] = [image for image in page().images if image.startswith("Held-out loss over cost. ")]
    assert "cost of the optimizer steps, USD" in image


def test_hostile_names_are_shown_not_obeyed(make, capsys):
    config = {"model.name": HOSTILE, "accelerator.price_usd_per_hour": 1.0, "accelerator.price_source": HOSTILE}
    runs = [make("full", "full", config=config)]
    runs.append(make("lora", config={**config, "lora.name": HOSTILE}))
    runs.append(make("lora2", config={**config, "lora.name": "[bold]$\\frac"}))
    written(*runs)
    found = page()
    assert not {"script", "img"} & set(found.tags)
    assert found.handlers == []
    assert f"FPFT against PEFT: {HOSTILE} on python_docs" in found.text
    assert f"lora={HOSTILE}" in found.text
    markdown = Path("out/report.md").read_text()
    assert "<script" not in re.sub(r"\\<", "", markdown)
    for line in markdown.splitlines():
        if line.startswith("| method=lora"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, "a name's | must not start a cell"
    printed = capsys.readouterr().out
    assert HOSTILE in printed
    assert "[bold]$\\frac" in printed


def test_no_file_that_may_be_passed_on_holds_a_password(make):
    written(make("lora", config={"tracking.uri": "https://me:secret@server", "output_dir": "hf_" + "a" * 30}))
    for file in Path("out").iterdir():
        assert "secret" not in file.read_text(), file
        assert "hf_aaa" not in file.read_text(), file
    assert "https://***@server" in Path("out/runs.csv").read_text()


def test_markdown_holds_the_table_with_ranges_and_ratios(make):
    rates = {("full", 0): 2.0, ("full", 1): 4.0, ("lora", 0): 6.0, ("lora", 1): 8.0}
    runs = [make(f"{m}{s}", m, s, train={"samples_per_second": rate}) for (m, s), rate in rates.items()]
    written(*runs)
    text = Path("out/report.md").read_text()
    assert "| samples/s, all replicas | 3.00 (2.00 to 4.00) | 7.00 (6.00 to 8.00) | 2.33x (2.00 to 3.00) |" in text
    assert "| throughput gained, samples/s | 133.3 % (100.0 to 200.0) |" in text


def test_the_published_comparison_stands_beside_it_everywhere_as_not_measured_here(make, capsys):
    written(make("full", "full"), make("lora"))
    printed = " ".join(capsys.readouterr().out.split())
    texts = [printed, Path("out/report.md").read_text(), page().text, Path("out/report.json").read_text()]
    for text in texts:
        assert "Published by others, not measured here" in text
        assert "8,030,261,248" in text or "8030261248" in text
    for text in texts[:3]:
        assert "41.1 %" in text
        assert "14.22" in text


def test_only_one_run_is_reported_without_a_ratio(make, capsys):
    assert main([str(make("lora")), "--no-files"]) == 0
    printed = capsys.readouterr().out
    assert "nothing to compare it with" in printed
    assert "ratio" not in printed.partition("note:")[0]
