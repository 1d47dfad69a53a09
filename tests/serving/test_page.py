"""The page works as HTML alone; in a browser its script only fetches results sooner."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest
import uvicorn
from fastapi.testclient import TestClient
from playwright.sync_api import expect, sync_playwright
from searching import Collection, FakeModels, photo, serve

from diptych.model.package import Calibration
from diptych.serving.app import make_app
from diptych.serving.following import Following
from diptych.serving.table_source import TableSource

TEXT = "a red square left of a blue circle"


@pytest.fixture(scope="module")
def served(module_collection: Collection) -> Iterator[TestClient]:
    for client, _, _ in serve(module_collection):
        yield client


class Links(HTMLParser):
    """Addresses on a page, by tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, value or "") for name, value in attrs if name in ("href", "src", "action")]

    def of(self, tag: str, start: str = "") -> list[str]:
        return [address for one, address in self.found if one == tag and address.startswith(start)]


def test_without_a_question_the_page_shows_how_to_ask(served: TestClient) -> None:
    page = served.get("/").text
    assert "7 images. Describe one" in page
    assert len(Links(page).of("img")) == 7


def test_results_are_those_of_the_api_in_its_order(served: TestClient) -> None:
    page = served.get("/", params={"q": TEXT}).text
    expected = served.get("/search", params={"text": TEXT, "k": 7}).json()["results"]
    assert Links(page).of("img") == [f"/images/{result['hash']}" for result in expected]
    assert "ranked by tiny version 1, index version" in page
    assert "the first 4 re-ranked" in page


def test_a_page_asks_no_other_host(served: TestClient) -> None:
    digest = hashlib.sha256(photo(2)).hexdigest()
    for address in ("/", f"/?q={TEXT}", f"/result/{digest}?q={TEXT}"):
        links = Links(served.get(address).text).found
        assert links
        assert [link for _, link in links if not link.startswith(("/", "data:"))] == []


def test_filters_are_offered_and_kept(served: TestClient) -> None:
    page = served.get("/", params={"q": TEXT, "is.folder": "cats"}).text
    assert '<option value="cats" selected>cats</option>' in page
    assert len(Links(page).of("img")) == 3
    assert "3 images pass the filters" in page
    assert "is.folder=cats" in Links(page).of("a", "/?like=")[0]


def test_filters_apply_without_a_text_and_to_an_uploaded_image(served: TestClient) -> None:
    page = served.get("/", params={"is.folder": "cats"}).text
    assert "3 images pass the filters. Describe one" in page
    assert len(Links(page).of("img")) == 3
    [action] = [address for address in Links(page).of("form") if "is.folder" in address]
    uploaded = served.post(action, files={"image": ("x.png", photo(3))}).text
    assert len(Links(uploaded).of("img")) == 3


def test_a_result_leads_back_to_its_search(served: TestClient) -> None:
    page = served.get("/", params={"q": TEXT, "is.folder": "cats"}).text
    result = served.get(Links(page).of("a", "/result/")[0]).text
    assert "/?q=a+red+square+left+of+a+blue+circle&is.folder=cats" in Links(result).of("a")


def test_numbers_are_filtered_by_a_range(collection: Collection) -> None:
    sheet = collection.photos / "files.csv"
    sheet.write_text("file,year\ncats/a.png,2019\ncats/b.png,2020\ndogs/a.png,2021\n")
    collection.update(TableSource(sheet))
    for client, _, _ in serve(collection):
        page = client.get("/", params={"q": TEXT, "min.year": "2020"}).text
        assert len(Links(page).of("img")) == 2
        assert 'name="min.year" value="2020"' in page


def test_more_like_this_begins_with_it(served: TestClient) -> None:
    digest = hashlib.sha256(photo(2)).hexdigest()
    page = served.get("/", params={"like": digest}).text
    assert "More like this one" in page
    assert Links(page).of("img")[0] == f"/images/{digest}"


def test_an_uploaded_image_finds_itself(served: TestClient) -> None:
    page = served.post("/", files={"image": ("x.png", photo(3))}).text
    assert Links(page).of("img")[0] == f"/images/{hashlib.sha256(photo(3)).hexdigest()}"
    assert "Like the image that you gave" in page


def test_a_result_shows_what_moved_its_match(served: TestClient) -> None:
    digest = hashlib.sha256(photo(2)).hexdigest()
    page = served.get(f"/result/{digest}", params={"q": TEXT}).text
    assert "the more it moved the match" in page
    assert "data:image/png;base64," in page
    assert "cats/c.png" in page
    assert "40 × 30 pixels" in page
    assert f"/?q={TEXT.replace(' ', '+')}" in Links(page).of("a")
    assert "it moved the match" not in served.get(f"/result/{digest}").text


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({"q": "a" * 2000}, 400, "at most 1,000 are read"),
        ({"q": TEXT, "is.year": "2020"}, 422, "no attribute"),
        ({"q": TEXT, "is.folder": "birds"}, 200, "No image passes the filters"),
        ({"q": TEXT, "offset": "24"}, 200, "There are no more results"),
        ({"q": TEXT, "offset": "-1"}, 200, "ranked by"),
        ({"q": TEXT, "offset": "1" * 5000}, 200, "There are no more results"),
        ({"like": "0" * 64}, 404, "The collection has no image"),
    ],
)
def test_what_went_wrong_is_said_on_the_page(
    served: TestClient, params: dict[str, str], status: int, words: str
) -> None:
    answer = served.get("/", params=params)
    assert answer.status_code == status
    assert words in answer.text


def test_where_nothing_fits_the_page_says_so(
    served: TestClient, module_collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for intercept, is_weak in ((-99.0, True), (99.0, False)):
        calibration = Calibration(intercept=intercept, score=0.0, margin=0.0, images=7, reliability=[])
        monkeypatch.setattr(module_collection.retriever, "calibration", calibration)
        page = served.get("/", params={"q": TEXT}).text
        assert ("No good match: of 100 such searches, 0 find the right image first" in page) is is_weak
        assert len(Links(page).of("img")) == 7


def test_a_result_that_is_not_there_is_a_page_that_says_so(served: TestClient) -> None:
    answer = served.get("/result/" + "0" * 64)
    assert answer.status_code == 404
    assert "The collection has no image" in answer.text
    assert "Back to the results" in answer.text


def test_before_anything_is_served_the_page_says_why(collection: Collection) -> None:
    for client, _, _ in serve(collection):
        answer = client.get("/", params={"q": TEXT})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "The collection photos is not indexed" in answer.text


def test_words_of_the_user_stay_words(served: TestClient) -> None:
    page = served.get("/", params={"q": "<script>alert(1)</script>", "is.folder": '"><img src=x>'}).text
    assert "<script>alert" not in page
    assert "<img src=x>" not in page


def test_a_fragment_is_the_results_alone(served: TestClient) -> None:
    fragment = served.get("/", params={"q": TEXT, "fragment": True}).text
    assert "<html" not in fragment
    whole = served.get("/", params={"q": TEXT}).text
    # The times at its end differ.
    assert fragment.partition("<footer>")[0].strip() in whole


@pytest.fixture
def address(module_collection: Collection) -> Iterator[str]:
    """A server that a browser can reach."""
    following = Following(FakeModels(module_collection.retriever), module_collection.store, module_collection.name)
    following.refresh()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(following, refresh_every=None), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    listening.close()


IMAGE = ".results img"
DROPPED = """async (address) => {
  const content = await (await fetch(address)).blob();
  const dropped = new DataTransfer();
  dropped.items.add(new File([content], "dropped.jpg", { type: "image/jpeg" }));
  return dropped;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser(address: str, tmp_path: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    # It is not the first of the images that the page shows before.
    (tmp_path / "chosen.png").write_bytes(photo(5))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
        problems: list[str] = []
        asked: set[str] = set()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.partition("//")[2].partition("/")[0]))
        page.goto(address)
        # Typing alone searches, and the address can be shared. A text that stands counts as a query, and none before.
        with page.expect_request(lambda request: request.url.endswith("fragment=true")) as counted:
            page.type("#q", "a red square")
            page.wait_for_selector("h1:text('a red square')")
        assert counted.value.url == f"{address}/?q=a+red+square&fragment=true"
        assert page.url == f"{address}/?q=a+red+square"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # A filter narrows the results.
        page.click("summary")
        page.select_option("select", "dogs")
        expect(page.locator(".results li")).to_have_count(2)
        assert page.title() == "a red square · diptych search"
        assert page.inner_text("summary") == "Filters (1)"
        assert page.url.endswith("is.folder=dogs")
        # A result opens, and back leads to the same results.
        page.click(".results li a")
        page.wait_for_selector("figure.large img")
        page.click("[data-back]")
        page.wait_for_selector(".results")
        assert page.locator(".results li").count() == 2
        assert page.input_value("#q") == "a red square"
        # An image that is dropped searches, and so does one that is chosen.
        dropped = page.evaluate_handle(DROPPED, page.get_attribute(IMAGE, "src"))
        page.dispatch_event("body", "drop", {"dataTransfer": dropped})
        page.wait_for_selector("h1:text('Like the image that you gave')")
        page.select_option("select", "")
        expect(page.locator(".results li")).to_have_count(7)
        page.set_input_files("input[type=file]", str(tmp_path / "chosen.png"))
        expect(page.locator(IMAGE).first).to_have_attribute("src", f"/images/{hashlib.sha256(photo(5)).hexdigest()}")
        # Its results are there again on the way back, though they have no address.
        page.click(".results li a")
        page.wait_for_selector("figure.large img")
        page.click("[data-back]")
        page.wait_for_selector("h1:text('Like the image that you gave')")
        # The keyboard reaches the field from anywhere.
        page.focus(".results a")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "q"
        browser.close()
    assert problems == []
    assert asked <= {address.partition("//")[2], ""}
