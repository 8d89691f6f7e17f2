// Keeps the visible page fresh. Everything works without it: pages are rendered by the server, actions are forms.
const EVERY_MS = 2000;
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
let etag = null;
let freshAt = new Date();
let timer = null;

function say(time) {
  const seconds = (new Date(time.dateTime) - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  time.textContent = relative.format(Math.trunc(seconds / length), unit);
  time.title = new Date(time.dateTime).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
}

function sayTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) say(time);
}

// A region keeps its place in the page: it has an id, and is swapped only when its markup changed.
// Returns whether all of it is up to date; what waits for a person's hand is tried again with the next look.
function swap(next) {
  let complete = true;
  for (const region of next.querySelectorAll("[data-live]")) {
    const old = document.getElementById(region.getAttribute("id")); // form.id may be a field that is named "id"
    if (!old) return false;
    sayTimes(region);
    if (old.isEqualNode(region)) continue;
    if (busy(old)) {
      complete = false;
      continue;
    }
    const open = new Set([...old.querySelectorAll("details[open][id]")].map((one) => one.id));
    const ticked = new Set([...old.querySelectorAll("input:checked[value]")].map((one) => one.name + "=" + one.value));
    const focus = old.contains(document.activeElement) ? document.activeElement : null;
    const key = focus && (focus.getAttribute("id") ? "#" + CSS.escape(focus.id) : focus.matches("input[type=checkbox][value]") ? `[name="${CSS.escape(focus.name)}"][value="${CSS.escape(focus.value)}"]` : focus.getAttribute("href") ? `[href="${CSS.escape(focus.getAttribute("href"))}"]` : null);
    old.replaceWith(region);
    for (const one of region.querySelectorAll("details[id]")) if (open.has(one.id)) one.open = true;
    for (const one of region.querySelectorAll("input[type=checkbox][value]")) one.checked = ticked.has(one.name + "=" + one.value);
    if (key) region.querySelector(key)?.focus({ preventScroll: true });
  }
  return complete;
}

// What a person is selecting or filling in stays as it is.
function busy(region) {
  const active = document.activeElement;
  if (active && region.contains(active) && active.matches("input:not([type=checkbox]), textarea, select")) return true;
  const selection = getSelection();
  return Boolean(selection && !selection.isCollapsed && region.contains(selection.anchorNode));
}

function stale(text) {
  const line = document.getElementById("stale");
  line.hidden = !text;
  if (line.textContent !== text) line.textContent = text;
}

async function refresh() {
  timer = null;
  if (document.hidden || !document.querySelector("[data-live]")) return;
  try {
    // The answer to a form has the address of the action, which can only be posted to.
    const answer = await fetch(document.querySelector("link[rel=canonical]")?.href ?? location.href, { headers: etag ? { "If-None-Match": etag } : {}, signal: AbortSignal.timeout(10000), redirect: "manual" });
    if (answer.type === "opaqueredirect" || answer.status === 401) return void location.reload();
    if (answer.status === 200) {
      const complete = swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
      etag = complete ? answer.headers.get("ETag") : null;
    } else if (answer.status !== 304) throw new Error(String(answer.status));
    freshAt = new Date();
    stale("");
    sayTimes(document);
  } catch {
    stale(`reconnecting, as of ${freshAt.toLocaleTimeString()}`);
  }
  schedule();
}

function schedule() {
  timer ??= setTimeout(refresh, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) { clearTimeout(timer); refresh(); } });
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});
document.addEventListener("change", (event) => {
  if (event.target.matches("input[data-all]"))
    for (const one of event.target.closest("form").querySelectorAll("input[type=checkbox][value]")) one.checked = event.target.checked;
});

sayTimes(document);
document.querySelector("form[data-submit-now]")?.requestSubmit();
schedule();
