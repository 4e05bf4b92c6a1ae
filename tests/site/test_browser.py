"""The website in a real browser, from the disk: offline, formulas, phones, dark mode, search."""

from contextlib import contextmanager

import pytest

LESSON = "notebooks/04_sub_paths_and_the_sl_ode"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
# The narrow page is the hard one.
PAGES = {
    "desktop": ("index", LESSON),
    "phone": ("index", LESSON, "glossary", "gallery", "api/slam_edu.sd", "results/family"),
}


@contextmanager
def opened(browser, site, size="desktop", scheme="light"):
    """A function that opens a page by its name; afterwards nothing may have failed."""
    width, height = WIDTHS[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(30_000)
    page, faults = context.new_page(), []

    def allow(route):
        if route.request.url.startswith(site.as_uri()):
            return route.continue_()
        faults.append(f"asked for {route.request.url}")
        return route.abort()

    page.route(lambda url: not url.startswith("data:"), allow)
    page.on("pageerror", lambda error: faults.append(str(error)))
    # A picture that was still on its way when the page was left is no fault.
    page.on(
        "requestfailed",
        lambda request: (
            faults.append(f"{request.failure}: {request.url}")
            if request.failure != "net::ERR_ABORTED"
            else None
        ),
    )

    def go(name, query=""):
        page.goto(f"{(site / name).as_uri()}.html{query}")
        page.evaluate("window.MathJax?.startup?.promise")
        return page

    yield go
    context.close()
    assert faults == []


@pytest.mark.parametrize("size", WIDTHS)
def test_pages_open_offline_and_do_not_scroll_sideways(chromium, site, size):
    with opened(chromium, site, size) as go:
        wide = {}
        for name in PAGES[size]:
            page = go(name)
            wide[name] = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert page.locator(".bd-article h1").is_visible()
            assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
        assert wide == dict.fromkeys(PAGES[size], 0)


def test_formulas_are_set_and_none_is_an_error(chromium, site):
    with opened(chromium, site) as go:
        page = go(LESSON)
        written = page.locator("main .math").count()
        assert written > 100
        assert page.locator("main .math mjx-container svg").count() == written
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0


def test_in_dark_mode_figures_lie_on_a_light_ground_and_text_does_not(chromium, site):
    with opened(chromium, site, scheme="dark") as go:
        for name in ("index", LESSON, "gallery"):
            page = go(name)
            grounds = page.evaluate(
                """() => ['.bd-content img', 'body'].map(
                    name => [...document.querySelectorAll(name)].map(
                        part => getComputedStyle(part).backgroundColor))"""
            )
            images, (body,) = (
                [[int(part) for part in colour[4:-1].split(",")] for colour in group]
                for group in grounds
            )
            assert images, name
            assert all(min(colour) > 230 for colour in images), name
            assert max(body) < 60, name


def test_a_solution_is_folded_until_it_is_clicked(chromium, site):
    with opened(chromium, site, "phone") as go:
        page = go(LESSON)
        solution = page.locator("#cell-l04-12 details")
        code = solution.get_by_text("def").first
        assert not code.is_visible()
        solution.locator("summary").click()
        code.wait_for(state="visible")
        assert "interpolate_solution" in solution.inner_text()


def test_search_finds_a_word_without_a_network(chromium, site):
    with opened(chromium, site) as go:
        page = go("search", "?q=drift+factor")
        hit = page.locator("#search-results a", has_text="Sub-paths and the SL-ODE").first
        hit.wait_for()
        assert LESSON in hit.get_attribute("href")


def test_a_figure_of_the_gallery_leads_to_its_cell(chromium, site):
    with opened(chromium, site) as go:
        page = go("gallery")
        page.locator("a[href$='#cell-l04-08']").first.click()
        page.wait_for_url("**/04_sub_paths_and_the_sl_ode.html#cell-l04-08")
        assert page.locator("#cell-l04-08 img").is_visible()
