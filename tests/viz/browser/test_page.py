"""The page in a real browser, opened from the folder as a reader would."""

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import toy_results
from chromium import chromium, complaints, missing, open_page, wait_for

REASON = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]

FIRST, MIDDLE, LAST = toy_results.SITES
ADDRESSES = [
    "",
    f"#{MIDDLE}",
    f"#{MIDDLE}?sort=-up_pearson&min.max=1&all=yes",
    f"#{MIDDLE}/5",
    f"#{MIDDLE}/3",  # never fired
    f"#graph/{MIDDLE}/5",
    "#communities",
    "#community/0",
    "#combinations",
    "#prompt/0/2",
    "#context/7/3",
    "#search/word1",
]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture(autouse=True)
def no_complaints(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, the console stays empty, and no token was run."""
    yield
    if "driver" in request.fixturenames:
        driver = request.getfixturevalue("driver")
        assert complaints(driver) == []
        assert not driver.execute_script("return window.hacked")


def text_of(driver: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
    return driver.execute_script(script, selector)


def click(driver: Any, selector: str, number: int = 0) -> None:
    driver.find_elements("css selector", selector)[number].click()


def press(driver: Any, keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(keys).perform()


def waited(driver: Any, condition: str) -> Any:
    """What a JavaScript expression becomes, once it is something."""
    return driver.execute_async_script(
        f"""
        const [done] = arguments, start = performance.now();
        (function look() {{
          const found = {condition};
          if (found || performance.now() - start > 10000) done(found);
          else setTimeout(look, 20);
        }})();
        """
    )


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_page_opens_without_a_complaint(driver, site, address):
    open_page(driver, site, address)
    assert text_of(driver, ".notice") == []
    assert text_of(driver, "h1")
    assert driver.title.endswith("Feature browser")


@pytest.mark.parametrize("address", ["", f"#{MIDDLE}", f"#{MIDDLE}/5", "#prompt/0/2"])
def test_a_single_layer_needs_no_evolution(driver, single, address):
    open_page(driver, single, address)
    assert text_of(driver, ".notice") == []
    assert not driver.find_elements("css selector", ".panel.up")


@pytest.mark.parametrize("address", ["", f"#{MIDDLE}", f"#{MIDDLE}/5", "#community/0"])
def test_evolution_alone_is_enough(driver, evolved, address):
    open_page(driver, evolved, address)
    assert text_of(driver, ".notice") == []
    assert not driver.find_elements("css selector", ".context")
    open_page(driver, evolved, "#search/word")
    assert "built without contexts" in text_of(driver, ".notice")[0]


def test_a_latent_page_has_what_is_known_of_it(driver, site):
    open_page(driver, site, f"#{MIDDLE}/5")
    assert len(text_of(driver, ".left > .panel .context")) >= 6
    assert text_of(driver, ".histogram .bar")
    assert len(text_of(driver, ".effects.promotes li")) == 5
    heads = text_of(driver, ".panel.up th")
    assert [head.rstrip(" ▾") for head in heads] == [
        *("latent", "most active at", "both", "Pearson", "cosine", "Jaccard", "necessity"),
        *("sufficiency", "MI", "decoder"),
    ]
    assert text_of(driver, ".panel.up tbody td:first-child") == ["0/5", "0/4"]
    assert text_of(driver, ".panel.down tbody td:first-child") == ["2/5", "2/6"]
    (link,) = driver.find_elements("css selector", "a[target=_blank]")
    assert link.get_attribute("href") == "https://www.neuronpedia.org/gpt2-small/6-res-jb/5"


def test_tables_are_sorted_by_any_measure(driver, site):
    open_page(driver, site, f"#{MIDDLE}/5")
    click(driver, ".panel.up th .sort", 2)  # both
    assert text_of(driver, ".panel.up td:nth-child(3)") == ["75", "6"]
    click(driver, ".panel.up th .sort", 2)
    assert text_of(driver, ".panel.up td:nth-child(3)") == ["6", "75"]


def test_walking_forward_and_back(driver, site):
    open_page(driver, site, f"#{MIDDLE}/5")
    press(driver, "]")
    wait_for(driver, f"#{LAST}/5")
    press(driver, "[")
    wait_for(driver, f"#{MIDDLE}/5")
    press(driver, "j")
    wait_for(driver, f"#{MIDDLE}/6")
    driver.back()
    wait_for(driver, f"#{MIDDLE}/5")
    click(driver, ".step", 0)
    wait_for(driver, f"#{FIRST}/5")
    press(driver, "u")
    wait_for(driver, f"#{FIRST}")


def test_walking_follows_the_order_last_listed(driver, site):
    open_page(driver, site, f"#{MIDDLE}?sort=-latent")
    click(driver, "tbody a")
    wait_for(driver, f"#{MIDDLE}/69")
    press(driver, "j")
    wait_for(driver, f"#{MIDDLE}/68")


def test_a_list_is_filtered_and_its_address_keeps_it(driver, site):
    open_page(driver, site, f"#{MIDDLE}?min.latent=10&max.latent=12&sort=latent")
    assert text_of(driver, "tbody td:first-child") == ["10", "11", "12"]
    open_page(driver, site, f"#{MIDDLE}")
    click(driver, "th .sort", 3)
    assert driver.current_url.endswith("?sort=-max")


def test_the_graph_shows_the_neighbourhood_and_grows(driver, site):
    nodes = "document.querySelectorAll('.node').length"
    open_page(driver, site, f"#graph/{MIDDLE}/30")
    assert waited(driver, f"{nodes} >= 5")  # itself, two before it and two after it
    assert waited(driver, "document.querySelectorAll('.line').length")
    before = driver.execute_script(f"return {nodes}")
    driver.execute_script("document.querySelectorAll('.node')[1].focus()")
    focused = "return document.activeElement.getAttribute('aria-label')"
    label = driver.execute_script(focused)
    press(driver, "e")
    assert waited(driver, f"{nodes} > {before}")
    assert label.startswith("latent ")
    assert driver.execute_script(focused) == label  # the keyboard goes on from where it was


def test_graph_lines_are_filtered_by_measure_and_threshold(driver, site):
    def slide(least: str) -> None:
        script = "const s = document.querySelector('.graph input'); s.value = arguments[0];"
        driver.execute_script(script + "s.dispatchEvent(new Event('input'))", least)

    open_page(driver, site, "#community/0")
    assert len(text_of(driver, ".line")) == 38
    slide("0.5")
    assert len(text_of(driver, ".line")) == 20
    slide("1")
    assert len(text_of(driver, ".node")) == 0
    assert "No line reaches 1.00" in text_of(driver, ".graph-info")[0]
    slide("0.2")


def test_the_keyboard_walks_through_a_graph(driver, site):
    open_page(driver, site, "#community/0")
    focus = "[...document.querySelectorAll('.node')].find((n) => n.title.startsWith('0/4')).focus()"
    driver.execute_script(focus)
    press(driver, "\ue014")  # right
    assert driver.execute_script("return document.activeElement.title").startswith("1/4")
    assert driver.execute_script("return document.querySelectorAll('.line.near').length")
    press(driver, "\ue007")  # Enter
    wait_for(driver, f"#{MIDDLE}/4")


def test_search_finds_tokens_contexts_and_addresses(driver, site):
    open_page(driver, site)
    press(driver, "/")
    press(driver, "word17\ue007")
    wait_for(driver, "#search/word17")
    assert text_of(driver, "button.chip") == ["·word17"]
    assert waited(driver, "document.querySelectorAll('a.chip').length")
    found = waited(driver, "document.querySelectorAll('.contexts .context').length")
    contexts = toy_results.dashboard().arrays["contexts"]
    assert found == min(50, int((contexts == toy_results.WORDS.index(" word17")).sum()))
    press(driver, "/")
    press(driver, "2/11\ue007")
    wait_for(driver, f"#{LAST}/11")


def test_a_phrase_over_several_tokens_is_found(driver, site):
    contexts = toy_results.dashboard().arrays["contexts"]
    first, second = next(
        (a, b)
        for row in contexts.tolist()
        for a, b in pairwise(row)
        if min(a, b) >= len(toy_results.HOSTILE)
    )
    phrase = (toy_results.WORDS[first] + toy_results.WORDS[second]).strip()
    open_page(driver, site, f"#search/{phrase}".replace(" ", "%20"))
    assert waited(driver, "document.querySelectorAll('.contexts .context').length")


def test_hostile_tokens_are_text(driver, site):
    open_page(driver, site, "#prompt/0/0")
    shown = text_of(driver, ".strip .token")
    assert shown[:3] == list(toy_results.HOSTILE[:3])
    assert shown[3] == "⟨U+202E⟩right-to-left override"
    assert shown[5] == "␀␇␛[31m␡"
    for number in range(len(toy_results.HOSTILE)):
        open_page(driver, site, f"#search/{number}")
    open_page(driver, site, "#search/%3Cscript")
    assert text_of(driver, "button.chip") == [toy_results.HOSTILE[0].replace(" ", "·")]
    # Model names are text as well.
    assert text_of(driver, ".brand span") == ["toy <b>"]


def test_right_to_left_tokens_do_not_move_their_neighbours(driver, site):
    """Every token of a context begins where the one before it ends."""
    open_page(driver, site, "#context/0")
    boxes = driver.execute_script(
        "return [...document.querySelectorAll('.strip .token')].map((t) => {"
        "const r = t.getClientRects(); return [r[0].left, r[0].top]; })"
    )
    for (left, top), (next_left, next_top) in pairwise(boxes):
        assert next_top > top + 5 or next_left >= left - 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"#{MIDDLE}/70", "has latents 0 to 69, not “70”"),
        (f"#{MIDDLE}/-1", "not “-1”"),
        ("#blocks.9.hook_resid_pre/1", "This site has no “blocks.9.hook_resid_pre”"),
        ("#<img src=x onerror=alert(1)>", "This site has no “<img src=x onerror=alert(1)>”"),
        ("#prompt/7", "There is no prompt 7"),
        ("#context/4000", None),
        ("#%E0%A4%A", "This site has no"),
    ],
)
def test_addresses_of_nothing_are_answered(driver, site, address, message):
    driver.get("about:blank")
    driver.get((site / "index.html").as_uri() + address)
    assert waited(driver, "document.querySelector('.notice[role=alert]')")
    if message is None:  # a shard that does not exist is looked for first
        assert "ERR_FILE_NOT_FOUND" in " ".join(complaints(driver))
    else:
        assert message in text_of(driver, ".notice")[0]


@pytest.mark.parametrize(
    ("gone", "address"),
    [("manifest.js", ""), ("latents/1/0.js", f"#{MIDDLE}/5"), ("vocabulary.js", f"#{MIDDLE}/5")],
)
def test_an_incomplete_site_says_so(driver, site, tmp_path, gone, address):
    shutil.copytree(site, tmp_path / "part")
    (tmp_path / "part" / "data" / gone).unlink()
    driver.get((tmp_path / "part" / "index.html").as_uri() + address)
    assert waited(driver, "document.querySelector('.notice[role=alert]')")
    (said,) = text_of(driver, ".notice")
    assert said.startswith(f"Incompletedata/{gone} is missing: this site is incomplete.")
    assert "python -m sae_kit.viz.browser" in said
    assert "ERR_FILE_NOT_FOUND" in " ".join(complaints(driver))
    driver.get("about:blank")
    complaints(driver)  # of what the page wanted in an idle moment


def test_a_cut_shard_is_called_damaged(driver, site, tmp_path):
    shutil.copytree(site, tmp_path / "cut")
    shard = tmp_path / "cut" / "data" / "latents/1/0.js"
    script = shard.read_bytes()
    shard.write_bytes(script[:2000] + b'");\n')
    driver.get((tmp_path / "cut" / "index.html").as_uri() + f"#{MIDDLE}/5")
    assert waited(driver, "document.querySelector('.notice[role=alert]')")
    assert "data/latents/1/0.js is damaged" in text_of(driver, ".notice")[0]


def test_light_and_dark(site):
    with chromium(dark=True) as driver:
        open_page(driver, site, f"#{MIDDLE}/5")
        background = "return getComputedStyle(document.documentElement).backgroundColor"
        dark = driver.execute_script(background)
        press(driver, "t")  # auto -> light
        assert driver.execute_script(background) != dark
        press(driver, "t")
        assert driver.execute_script(background) == dark
        assert complaints(driver) == []


def test_controls_have_names_and_pages_fit_a_laptop(driver, site: Path):
    for address in ADDRESSES:
        open_page(driver, site, address)
        nameless = driver.execute_script(
            "return [...document.querySelectorAll('button, a[href], input, select, svg[role=img]')]"
            ".filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.title"
            " || e.closest('label')?.textContent.trim())).map((e) => e.outerHTML)"
        )
        assert nameless == [], address
        wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not driver.execute_script(wide), f"{address} is wider than the window"
