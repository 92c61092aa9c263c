"""The operator's page in a real browser: each journey, against a real server with data of the demos."""

from __future__ import annotations

import json
import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from lightning_store import EnqueueRolloutRequest, Span
from lightning_store_client import SyncLightningStoreClient


def accessible(page):
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def whole(page):
    """Nothing sticks out to the side."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_page_is_accessible_and_fits(open_page, look, live, done):
    page = open_page(**look)
    for server in (live, done):
        for path in ("/", "/ui/rollouts", "/ui/workers", "/ui/resources", "/ui/settings"):
            page.goto(server.url + path)
            expect(page.get_by_role("navigation", name="Pages")).to_be_visible()
            whole(page)
            accessible(page)
        page.goto(f"{server.url}/ui/rollouts?status=succeeded")
        page.locator("tbody a").first.click()
        expect(page.get_by_role("heading", name="Spans")).to_be_visible()
        page.locator(".falls tbody a").first.click()
        expect(page.locator("#span")).to_be_visible()
        whole(page)
        accessible(page)
        page.get_by_role("link", name=re.compile("^rs")).first.click()
        expect(page.get_by_role("heading", name="Rollouts that used them")).to_be_visible()
        accessible(page)
    page.goto(f"{live.url}/ui/rollouts?status=succeeded")
    page.get_by_role("link", name=re.compile("^grpo.")).first.click()
    expect(page.get_by_role("heading", name="Side by side")).to_be_visible()
    whole(page)
    accessible(page)


def test_the_overview_renews_itself_and_can_be_paused(open_page, live):
    page = open_page()
    page.goto(live.url)
    board = page.locator(".board")
    before = board.get_attribute("data-now")
    expect(board).not_to_have_attribute("data-now", before)
    expect(page.locator("#live-text")).not_to_have_text(f"as of {before}")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    expect(page.locator("svg[aria-label^='Reward']")).to_be_visible()


def test_a_keyboard_is_enough(open_page, done):
    page = open_page()
    page.goto(done.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("link", name="Rollouts", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Rollouts", level=1)).to_be_visible()
    page.get_by_label("train", exact=True).focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url("**mode=train**")
    expect(page.get_by_label("train", exact=True)).to_be_checked()


def test_rollouts_are_filtered_sorted_and_paged(open_page, done):
    page = open_page()
    page.goto(f"{done.url}/ui/rollouts")
    expect(page.locator("tbody tr")).to_have_count(50)
    first = page.locator("tbody a").first.inner_text()
    page.get_by_role("link", name="Next").click()
    page.wait_for_url("**begin=**")
    assert first not in page.locator("tbody").inner_text()
    page.get_by_role("link", name="First").click()
    expect(page.locator("tbody a").first).to_have_text(first)
    page.get_by_label("val", exact=True).check()
    page.get_by_label("Order").select_option("longest attempt first")
    page.get_by_role("button", name="Show", exact=True).click()
    page.wait_for_url("**order=slowest**")
    modes = page.locator("tbody tr td:nth-child(4)").all_inner_texts()
    assert modes
    assert set(modes) == {"val"}
    page.get_by_label("Text in input or metadata").fill("there is no such text anywhere")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_text("No rollout fits")).to_be_visible()


def test_rollouts_are_cancelled_requeued_and_deleted(open_page, done):
    with SyncLightningStoreClient(done.endpoint) as client:
        made = client.enqueue_many_rollouts([EnqueueRolloutRequest(input="to go")] * 2)
    one, other = (each.rollout_id for each in made)
    page = open_page()
    page.goto(f"{done.url}/ui/rollouts?text=to+go")
    for rollout_id in (one, other):
        page.get_by_label(f"Choose {rollout_id}").check()
    page.get_by_role("button", name="Cancel…").click()
    expect(page.get_by_role("heading", name="Cancel 2 rollouts?")).to_be_visible()
    accessible(page)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("tbody .s-cancelled")).to_have_count(2)
    page.get_by_label("Choose all on this page").check()
    page.get_by_role("button", name="Requeue…").click()
    page.get_by_role("button", name="Requeue", exact=True).click()
    expect(page.locator("tbody .s-requeuing")).to_have_count(2)
    page.get_by_role("link", name=one).click()
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.goto(f"{done.url}/ui/rollouts?text=to+go")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_conversation_is_read_compared_and_copied(open_page, done):
    with SyncLightningStoreClient(done.endpoint) as client:
        client.enqueue_many_rollouts(
            [EnqueueRolloutRequest(input="2 + 2", group_id="sums", group_size=2, priority=9)] * 2
        )
        for number, answer in enumerate(("four", "<b>five</b>")):
            claimed = client.dequeue_rollout("talker")
            client.add_span(
                Span(
                    rollout_id=claimed.rollout_id,
                    attempt_id=claimed.attempt.attempt_id,
                    sequence_id=1,
                    trace_id="a" * 32,
                    span_id="b" * 16,
                    name="chat",
                    attributes={
                        "gen_ai.request.model": "small-model",
                        "gen_ai.prompt.0.role": "user",
                        "gen_ai.prompt.0.content": "What is 2 + 2?",
                        "gen_ai.completion.0.role": "assistant",
                        "gen_ai.completion.0.content": answer,
                        "gen_ai.usage.input_tokens": 7,
                        "gen_ai.usage.output_tokens": 1,
                        "reward": 1.0 - number,
                    },
                )
            )
            client.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")
    rollout_id = claimed.rollout_id
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(f"{done.url}/ui/groups/sums")
    expect(page.locator(".common")).to_have_text(["userWhat is 2 + 2?"] * 2)
    expect(page.locator(".differs")).to_have_text(["assistantfour", "assistant<b>five</b>"])
    accessible(page)
    page.goto(f"{done.url}/ui/rollouts/{rollout_id}")
    expect(page.locator(".talk .answer")).to_have_text("assistant<b>five</b>")
    expect(page.get_by_text("7 in, 1 out")).to_be_visible()
    page.get_by_role("button", name="Copy as JSON").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["rollout"]["rollout_id"] == rollout_id


@pytest.mark.parametrize("role", ["reader", "admin"])
def test_a_browser_logs_in_and_out(open_page, guarded, role):
    server, tokens = guarded
    page = open_page()
    page.goto(f"{server.url}/ui/workers")
    page.wait_for_url("**/ui/login?**")
    accessible(page)
    page.get_by_label("Token").fill(tokens[role])
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/ui/workers")
    expect(page.get_by_text(f"{role} ({role})")).to_be_visible()
    page.goto(f"{server.url}/ui/settings")
    expect(page.get_by_role("cell", name="algorithm").first).to_be_visible()
    assert not page.evaluate("document.cookie")
    page.get_by_role("button", name="Log out").click()
    page.goto(server.url)
    page.wait_for_url("**/ui/login?**")
