"""The page in Chromium: a real gateway, a real model, and what a person sees and can do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, Route

import processes
from browser import Browser, chromium, expect
from processes import LABELS, SAMPLE, Running

PICTURES = processes.ROOT / "page-report"
# Playwright's greenlets meet an event loop that pytest's own warnings filter would complain of at the exit.
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning")]
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1200, "height": 900}}
ANSWER = re.compile(r"^[a-z-]+, [\d.]+ %$")
# Pastes or drops a file or a text on an element.
GIVE = """([kind, selector, bytes, text]) => {
    const carrier = new DataTransfer();
    if (bytes) carrier.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
    else carrier.setData("text/plain", text);
    const event = kind === "paste"
        ? new ClipboardEvent("paste", {clipboardData: carrier, bubbles: true})
        : new DragEvent("drop", {dataTransfer: carrier, bubbles: true, cancelable: true});
    document.querySelector(selector).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with processes.model_server(tmp_path_factory.mktemp("model") / "log", processes.DEMO_MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photo server's answers."""
    folder = tmp_path_factory.mktemp("photos")
    shutil.copyfile(SAMPLE, folder / SAMPLE.name)
    return folder


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, model: Running, photo_folder: Path) -> Iterator[Running]:
    with (
        processes.photo_server(photo_folder) as photos,
        processes.gateway(
            tmp_path_factory.mktemp("gateway") / "log", model.ports["grpc"],
            GATEWAY_FETCH_ALLOWED_NETWORKS="127.0.0.0/8", GATEWAY_FETCH_ALLOWED_PORTS=f"80,443,{photos}",
        ) as server,
    ):  # fmt: skip
        processes.wait_until_ready(server)
        server.ports["photos"] = photos
        yield server


class Visit:
    """A visit: the page, with the browser's messages."""

    def __init__(self, context: BrowserContext, base: str) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text) if self._bad(message) else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, base))
        # From here on Chromium hands its choosers over: told at the first wait for one, it may be told too late.
        self.page.on("filechooser", lambda _: None)
        self.page.goto(base)
        self.done = self.page.locator("#status")
        self.spoken = self.page.get_by_role("status")

    def _bad(self, message) -> bool:
        # An answer that is an error is shown by the browser, too; the page's own words for it are what is tested.
        return message.type in ("error", "warning") and "Failed to load resource" not in message.text

    def _note(self, url: str, base: str) -> None:
        if not url.startswith((base, "blob:", "data:")):
            self.foreign.append(url)

    def choose(self, *photos: Path) -> None:
        """One action: a file chooser answered."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Choose photos").click()
        chooser.value.set_files(photos)

    def card(self, name: str):
        return self.page.locator(".card").filter(has=self.page.get_by_role("heading", name=name, exact=True)).first


def assert_accessible(visit: Visit) -> None:
    """axe finds no violation. The page's policy forbids third-party scripts; the browser injects the checker."""
    results = Axe().run(visit.page)
    assert results.violations_count == 0, results.generate_report()


@pytest.fixture(params=["phone", "desktop"])
def size(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def visit(browser: Browser, gateway: Running, size: str) -> Iterator[Visit]:
    context = browser.new_context(**(PHONE if size == "phone" else DESKTOP))
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = Visit(context, f"http://127.0.0.1:{gateway.ports['http']}/")
    made.page.set_default_timeout(20_000)
    yield made
    context.close()
    assert not made.complaints
    assert not made.foreign, "the page asked another host"


def picture(visit: Visit, name: str) -> None:
    """A screenshot for the report."""
    PICTURES.mkdir(exist_ok=True)
    visit.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def test_photo_in_two_actions_shows_the_gateways_scores(visit: Visit, gateway: Running, size: str):
    visit.choose(SAMPLE)  # open the chooser, choose: no third action
    card = visit.card(SAMPLE.name)
    answer = gateway.post("/classify", body=SAMPLE.read_bytes(), headers=processes.PNG).json()
    best = answer["predictions"][0]
    expect(card.locator(".answer")).to_have_text(f"{best['label']}, {best['probability'] * 100:.1f} %")
    rows = card.locator("tbody tr")
    assert rows.count() == len(LABELS)
    assert rows.locator("visible=true").count() == 5
    card.get_by_role("button", name="All classes").click()
    assert rows.locator("visible=true").count() == len(LABELS)
    assert [row.locator("th").inner_text() for row in rows.all()] == [each["label"] for each in answer["predictions"]]
    widths = [row.locator(".bar").bounding_box()["width"] for row in rows.all()]
    assert widths == sorted(widths, reverse=True)
    assert re.search(r"decode [\d.]+ ms · predict [\d.]+ ms · all \d+ ms", card.locator(".times").inner_text())
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0, "the thumbnail is the photo"
    expect(visit.page.locator("#model")).to_have_text(
        f"Model {answer['model']['name']}, version {answer['model']['version']}"
    )
    expect(visit.spoken).to_have_text(f"1 of 1 done. {SAMPLE.name}: {card.locator('.answer').inner_text()}")
    picture(visit, f"one-photo-{size}")


@pytest.mark.parametrize("size", ["phone"])
def test_a_phone_takes_a_photo(visit: Visit):
    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role("button", name="Take a photo").click()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(SAMPLE)
    expect(visit.page.locator(".answer")).to_have_text(ANSWER)


def test_several_photos_one_not_an_image(visit: Visit, size: str, tmp_path: Path):
    broken = tmp_path / "notes.jpg"
    broken.write_text("not a photo")
    photos = processes.dataset_photos(4) or [SAMPLE]
    visit.choose(broken, *photos)
    expect(visit.done).to_have_text(f"{len(photos) + 1} of {len(photos) + 1} done, 1 failed.")
    expect(visit.card("notes.jpg").locator(".answer")).to_contain_text("no JPEG, PNG, WebP, GIF or BMP file")
    expect(visit.card("notes.jpg").locator(".times")).to_contain_text("(415), request ")
    bars = set()
    for photo in photos:
        card = visit.card(photo.name)
        expect(card.locator(".answer")).to_have_text(ANSWER)
        bars.add(card.locator("tbody td").first.bounding_box()["width"])
        frame, thumbnail = (card.locator(part).bounding_box() for part in (".picture", "img"))
        assert frame["y"] <= thumbnail["y"], "the whole photo is seen, as the model sees the whole"
        assert thumbnail["y"] + thumbnail["height"] <= frame["y"] + frame["height"]
    assert len(bars) == 1, "bars of several photos can be compared"
    picture(visit, f"several-{size}")


@pytest.mark.parametrize("size", ["desktop"])
def test_independent_probabilities_are_no_shares_of_a_whole(visit: Visit):
    def independent(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["model"] |= {"scores": "independent", "threshold": 0.6}
        body["labels"] = [each["label"] for each in body["predictions"][:2]]
        for each, probability in zip(body["predictions"], (0.9, 0.8, 0.5), strict=False):
            each["probability"] = probability
        route.fulfill(response=answer, json=body)

    visit.choose(SAMPLE)
    card = visit.card(SAMPLE.name)
    caption = card.locator("caption")
    expect(caption).to_have_class("unseen")
    visit.page.route("**/classify", independent, times=1)
    visit.choose(SAMPLE)
    expect(card.locator(".answer")).to_have_text(re.compile(r".+, 90\.0 %; .+, 80\.0 %"))
    expect(card.locator("caption")).to_have_text("Each class has its own probability; they need not sum to 100 %.")
    expect(card.locator("caption")).to_have_class("quiet")
    whole, bar = (card.locator("tbody tr").nth(1).locator(part).bounding_box()["width"] for part in (".whole", ".bar"))
    assert bar == pytest.approx(0.8 * whole, abs=1)
    assert (
        card.locator("tbody tr").nth(1).locator(".whole").evaluate("each => getComputedStyle(each).outlineStyle")
        == "solid"
    )
    colours = card.locator(".bar").evaluate_all("all => all.map(bar => getComputedStyle(bar).backgroundColor)")
    assert len(set(colours)) == 1, "the classes are drawn alike"
    assert_accessible(visit)


def test_progress_of_several_photos(visit: Visit, tmp_path: Path):
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    visit.page.route("**/classify", hold)
    photos = [shutil.copyfile(SAMPLE, tmp_path / f"{number}.png") for number in range(5)]
    visit.choose(*photos)
    bar = visit.page.get_by_role("progressbar", name="Photos classified")
    for done in range(len(photos)):
        expect(visit.done).to_have_text(f"{done} of 5 done.")
        assert (bar.get_attribute("max"), bar.get_attribute("value")) == ("5", str(done))
        expect(visit.page.get_by_text("Asking…")).to_have_count(min(3, 5 - done))  # as many as a small gateway takes
        held.pop(0).continue_()
    expect(visit.done).to_have_text("5 of 5 done.")
    expect(bar).to_be_hidden()


@pytest.mark.parametrize("size", ["desktop"])
def test_link_is_classified(visit: Visit, gateway: Running):
    visit.page.get_by_label("or give a link to one").fill(f"http://127.0.0.1:{gateway.ports['photos']}/{SAMPLE.name}")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".answer")).to_have_text(ANSWER)
    expect(visit.page.locator(".times")).to_contain_text("fetch ")


@pytest.mark.parametrize("size", ["desktop"])
def test_failed_photo_can_be_retried(visit: Visit, gateway: Running, photo_folder: Path):
    visit.page.get_by_label("or give a link to one").fill(f"http://127.0.0.1:{gateway.ports['photos']}/late.png")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".answer")).to_contain_text("The photo's server answered with status 404")
    expect(visit.done).to_have_text("1 of 1 done, 1 failed.")
    shutil.copyfile(SAMPLE, photo_folder / "late.png")
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.page.locator(".answer")).to_have_text(ANSWER)
    expect(visit.done).to_have_text("1 of 1 done.")


@pytest.mark.parametrize("size", ["desktop"])
@pytest.mark.parametrize("megabytes", [21, 60])
def test_a_file_that_is_too_large(visit: Visit, tmp_path: Path, megabytes: int):
    """The gateway's error reaches the browser, although the gateway doesn't read the whole body."""
    large = tmp_path / "large.jpg"
    large.write_bytes(SAMPLE.read_bytes() + bytes(megabytes * 10**6))
    visit.choose(large)
    expect(visit.page.locator(".times")).to_contain_text("(413), request ")
    expect(visit.done).to_have_text("1 of 1 done, 1 failed.")


@pytest.mark.parametrize("size", ["desktop"])
def test_a_file_that_was_moved(visit: Visit, tmp_path: Path):
    broken = tmp_path / "notes.jpg"
    broken.write_text("not a photo")
    visit.choose(broken)
    expect(visit.page.locator(".answer")).to_contain_text("no JPEG")
    broken.unlink()
    visit.page.get_by_role("button", name="Try again").click()
    expect(visit.page.locator(".answer")).to_contain_text("a file that was moved")


@pytest.mark.parametrize("size", ["desktop"])
def test_link_to_a_private_address_is_refused_clearly(visit: Visit):
    visit.page.get_by_label("or give a link to one").fill("http://169.254.169.254/latest/meta-data/")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator(".answer")).to_contain_text("The photo's address is not allowed")
    expect(visit.page.get_by_role("button", name="Try again")).to_be_visible()


@pytest.mark.parametrize("size", ["desktop"])
def test_pasting_a_photo_and_dropping_one(visit: Visit):
    for kind in ("paste", "drop"):
        visit.page.evaluate(GIVE, [kind, "body", list(SAMPLE.read_bytes()), ""])
        expect(visit.card(f"{kind}.png").locator(".answer")).to_have_text(ANSWER)
    visit.page.evaluate(GIVE, ["paste", "#url", list(SAMPLE.read_bytes()), ""])
    expect(visit.done).to_have_text("3 of 3 done.")


@pytest.mark.parametrize("size", ["desktop"])
@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pasting_a_link_and_dropping_one(visit: Visit, gateway: Running, kind: str):
    visit.page.evaluate(GIVE, [kind, "body", None, "something else"])
    expect(visit.done).to_contain_text("neither a photo nor a link")
    expect(visit.spoken).to_contain_text("neither a photo nor a link")
    link = f"http://127.0.0.1:{gateway.ports['photos']}/{SAMPLE.name}"
    visit.page.evaluate(GIVE, ["paste", "#url", None, link])  # that is the field's
    expect(visit.page.locator(".card")).to_have_count(0)
    visit.page.evaluate(GIVE, [kind, "body", None, link])
    expect(visit.card(link).locator(".answer")).to_have_text(ANSWER)


@pytest.mark.parametrize("size", ["desktop"])
@pytest.mark.parametrize("name", ["photo.png", """it's; a, "photo\\".png"""])
def test_shown_curl_gives_the_same_answer(visit: Visit, tmp_path: Path, name: str):
    if shutil.which("curl") is None:
        pytest.skip("no curl on the PATH")
    visit.choose(shutil.copyfile(SAMPLE, tmp_path / name))
    card = visit.page.locator(".card")
    shown = card.locator(".answer")
    expect(shown).to_have_text(ANSWER)
    card.get_by_text("The same with curl").click()
    card.get_by_role("button", name="Copy").click()
    expect(card.get_by_role("button", name="Copied")).to_be_visible()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == card.locator("pre").inner_text()
    done = processes.subprocess.run(
        ["sh", "-c", copied.replace("curl ", "curl -s ", 1)], cwd=tmp_path, check=True, capture_output=True
    )
    best = json.loads(done.stdout)["predictions"][0]
    assert shown.inner_text() == f"{best['label']}, {best['probability'] * 100:.1f} %"


@pytest.mark.parametrize("size", ["desktop"])
def test_keyboard_only(visit: Visit):
    """The focus order is the reading order, and Enter on the button opens the file chooser."""
    keyboard = visit.page.keyboard
    keyboard.press("Tab")
    expect(visit.page.get_by_role("button", name="Choose photos")).to_be_focused()
    with visit.page.expect_file_chooser() as chooser:
        keyboard.press("Enter")
    chooser.value.set_files(SAMPLE)
    card = visit.card(SAMPLE.name)
    expect(card.locator(".answer")).to_have_text(ANSWER)
    for _ in range(12):
        keyboard.press("Tab")
        if card.get_by_role("button", name="All classes").evaluate("it => it === document.activeElement"):
            break
    keyboard.press("Enter")
    assert card.locator("tbody tr").locator("visible=true").count() == len(LABELS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_violation(visit: Visit, scheme: str, size: str, tmp_path: Path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0")
    visit.page.emulate_media(color_scheme=scheme)
    visit.choose(SAMPLE, broken)
    expect(visit.done).to_have_text("2 of 2 done, 1 failed.")
    visit.card(SAMPLE.name).get_by_text("The same with curl").click()
    assert_accessible(visit)
    picture(visit, f"axe-{scheme}-{size}")


def test_page_recovers_when_the_model_returns(browser: Browser, tmp_path: Path):
    """The page shows it and retries without a click."""
    port = processes.free_port()
    with processes.gateway(tmp_path / "gateway", port, GATEWAY_MODEL_CHECK_SECONDS="0.5") as gateway:
        context = browser.new_context(**DESKTOP)
        visit = Visit(context, f"http://127.0.0.1:{gateway.ports['http']}/")
        visit.choose(SAMPLE)
        answer = visit.card(SAMPLE.name).locator(".answer")
        expect(answer).to_contain_text("Trying again in", timeout=20_000)
        expect(visit.spoken).to_contain_text("It is tried again until it works.")
        assert_accessible(visit)
        picture(visit, "model-away")
        with processes.model_server(tmp_path / "model", processes.DEMO_MODEL, port=port):
            expect(answer).to_have_text(ANSWER, timeout=60_000)
        context.close()


def test_page_recovers_when_the_gateway_returns(browser: Browser, model: Running, tmp_path: Path):
    """As in a cluster, where gateways that have no model leave their Service after some seconds."""
    port = processes.free_port()
    context = browser.new_context(**DESKTOP)

    def started(name: str):
        return processes.gateway(tmp_path / name, model.ports["grpc"], GATEWAY_LISTEN_PORT=str(port))

    with started("first"):
        visit = Visit(context, f"http://127.0.0.1:{port}/")
    visit.choose(SAMPLE)
    answer = visit.card(SAMPLE.name).locator(".answer")
    expect(answer).to_have_text(re.compile(r"^The gateway can't be reached\. Trying again in \d+ s\.$"))
    with started("second") as second:
        processes.wait_until_ready(second)
        expect(answer).to_have_text(ANSWER, timeout=40_000)
    context.close()


@pytest.mark.parametrize("size", ["desktop"])
@pytest.mark.parametrize(("status", "said"), [(503, "Trying again in"), (413, "too large"), (403, "answered (403)")])
def test_load_balancers_own_error_page(visit: Visit, status: int, said: str):
    visit.page.route("**/classify", lambda route: route.fulfill(status=status, body="<html>"), times=1)
    visit.choose(SAMPLE)
    expect(visit.page.locator(".answer")).to_contain_text(said)
    if status == 503:
        expect(visit.page.locator(".answer")).to_have_text(ANSWER)


def test_long_names_do_not_widen_a_narrow_page(browser: Browser, model: Running, tmp_path: Path):
    labels = ["American Staffordshire terrier, Staffordshire terrier", *LABELS[1:4], "x" * 60, *LABELS[5:]]
    named = shutil.copyfile(SAMPLE, tmp_path / f"{'0123456789' * 10}.png")
    with processes.gateway(tmp_path / "log", model.ports["grpc"], GATEWAY_LABELS=json.dumps(labels)) as gateway:
        processes.wait_until_ready(gateway)
        context = browser.new_context(**PHONE | {"viewport": {"width": 320, "height": 640}})
        visit = Visit(context, f"http://127.0.0.1:{gateway.ports['http']}/")
        visit.choose(named)
        expect(visit.card(named.name).locator(".answer")).to_contain_text("x" * 60)
        visit.page.get_by_text("The same with curl").click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
        context.close()


@pytest.mark.parametrize("size", ["desktop"])
def test_cut_connection(visit: Visit, tmp_path: Path):
    """Cut by a proxy, as the gateway cuts none: a large photo may be the cause, a small one hardly."""
    large = tmp_path / "large.png"
    large.write_bytes(SAMPLE.read_bytes() + bytes(2 * 10**6))
    visit.page.route("**/classify", lambda route: route.abort("connectionreset"), times=2)
    visit.choose(large)
    expect(visit.card(large.name).locator(".answer")).to_contain_text("it may be too large for what is between")
    visit.choose(SAMPLE)
    answer = visit.card(SAMPLE.name).locator(".answer")
    expect(answer).to_contain_text("The connection was lost. Trying again in")
    expect(answer).to_have_text(ANSWER)


def test_api_key_is_requested_and_kept(browser: Browser, model: Running, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("shop a-very-long-and-secret-key-0123456789\n")
    with processes.gateway(tmp_path / "gateway", model.ports["grpc"], GATEWAY_KEYS_FILE=str(keys)) as gateway:
        processes.wait_until_ready(gateway)
        context = browser.new_context(**DESKTOP)
        visit = Visit(context, f"http://127.0.0.1:{gateway.ports['http']}/")
        visit.choose(SAMPLE)
        field = visit.page.get_by_label("This gateway asks for a key")
        expect(field).to_be_focused(timeout=20_000)
        assert_accessible(visit)
        field.fill("one-that-the-gateway-does-not-have-0123456789")
        with visit.page.expect_response("**/classify"):
            visit.page.keyboard.press("Enter")
        expect(field).to_be_focused()
        visit.page.keyboard.type("a-very-long-and-secret-key-0123456789")  # in the place of the other
        visit.page.keyboard.press("Enter")
        card = visit.card(SAMPLE.name)
        expect(card.locator(".answer")).to_have_text(ANSWER)
        card.get_by_text("The same with curl").click()
        expect(card.locator("pre")).to_contain_text('-H "Authorization: Bearer $KEY"')
        assert "secret" not in visit.page.locator("body").inner_text()
        context.close()
