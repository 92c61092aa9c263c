// What the page does beside links and forms: it renews itself, chooses all rows, and copies. All works without it, too.

function renew(part) {
  const toggle = document.getElementById("live-toggle");
  const text = document.getElementById("live-text");
  const state = document.getElementById("live-state");
  let paused = false;
  let timer = 0;

  async function once() {
    // Whoever reads or selects inside must not lose the place.
    const busy = document.hidden || part.contains(document.activeElement) || !getSelection().isCollapsed;
    if (!paused && !busy) {
      try {
        const reply = await fetch(part.dataset.live, { redirect: "error" });
        if (!reply.ok) throw new Error(`HTTP ${reply.status}`);
        const scrolled = [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
        part.innerHTML = await reply.text(); // escaped by the server, as the page is
        part.querySelectorAll(".scroll").forEach((one, place) => (one.scrollLeft = scrolled[place] ?? 0));
        text.textContent = `as of ${part.firstElementChild.dataset.now}`;
        state.classList.remove("lost");
      } catch {
        text.textContent = "no answer; trying again";
        state.classList.add("lost");
      }
    }
    timer = setTimeout(once, Number(part.firstElementChild.dataset.again));
  }

  toggle.hidden = false;
  state.removeAttribute("role"); // nobody wants to hear every renewal
  toggle.addEventListener("click", () => {
    paused = !paused;
    toggle.textContent = paused ? "Go on" : "Pause";
    state.classList.toggle("paused", paused);
    if (!paused) {
      clearTimeout(timer);
      once();
    }
  });
  timer = setTimeout(once, Number(part.firstElementChild.dataset.again));
}

for (const part of document.querySelectorAll("[data-live]")) renew(part);

for (const all of document.querySelectorAll("[data-all]")) {
  all.hidden = false;
  all.addEventListener("change", () => {
    for (const one of all.form.querySelectorAll('input[name="id"]')) one.checked = all.checked;
  });
}

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue; // on plain HTTP beyond loopback there is none
  button.hidden = false;
  const title = button.textContent;
  button.addEventListener("click", async () => {
    try {
      const reply = await fetch(button.dataset.copy);
      await navigator.clipboard.writeText(JSON.stringify(await reply.json(), null, 2));
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not copied";
    }
    setTimeout(() => (button.textContent = title), 1500);
  });
}
