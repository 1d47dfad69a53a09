// The page works without this script; with it, results appear as one types, drops or pastes.
"use strict";
document.documentElement.classList.add("scripted");
const results = document.getElementById("results");
const search = document.getElementById("search");
const upload = document.getElementById("upload");
let pending = null;

// The address of the results alone.
function fragment(address, interim = false) {
  return `${address}${address.includes("?") ? "&" : "?"}fragment=true${interim ? "&interim=true" : ""}`;
}

async function show(address, options = {}) {
  if (pending) pending.abort();
  const mine = (pending = new AbortController());
  results.classList.add("waiting");
  try {
    const answer = await fetch(address, { ...options, signal: mine.signal });
    const isPage = (answer.headers.get("content-type") || "").startsWith("text/html");
    const text = await answer.text();
    if (pending !== mine) return;
    if (isPage) results.innerHTML = text;
    else complain(JSON.parse(text).detail);
    tell();
  } catch (error) {
    if (error.name !== "AbortError") complain("The server does not answer. Is it still running?");
  } finally {
    if (pending === mine) {
      results.classList.remove("waiting");
      pending = null;
    }
  }
}

// What the page says beside the results.
function tell() {
  const words = document.getElementById("q").value.trim();
  document.title = (words ? `${words} · ` : "") + "diptych search";
  const chosen = [...new FormData(search)].filter(([name, value]) => name !== "q" && value).length;
  const summary = search.querySelector("summary");
  if (summary) summary.textContent = chosen ? `Filters (${chosen})` : "Filters";
}

function complain(words) {
  const line = document.createElement("p");
  line.className = "problem";
  line.setAttribute("role", "alert");
  line.textContent = words;
  results.replaceChildren(line);
}

function address() {
  const fields = [...new FormData(search)].filter(([, value]) => value.trim());
  return "/" + (fields.length ? "?" + new URLSearchParams(fields) : "");
}

async function searchByImage(file) {
  const body = new FormData();
  body.append("image", file);
  document.getElementById("q").value = "";
  history.pushState(null, "", address());
  await show(fragment(address()), { method: "POST", body });
  // An image has no address: its results are kept for the way back.
  history.replaceState({ results: results.innerHTML }, "");
}

if (search) {
  if (history.state && history.state.results) results.innerHTML = history.state.results;
  let timer = 0;
  // The server's profile of queries counts a text that is sent or stands for two seconds, and none that is being typed.
  const now = (sent) => {
    clearTimeout(timer);
    history[sent ? "pushState" : "replaceState"](null, "", address());
    show(fragment(address(), !sent));
    if (!sent) timer = setTimeout(() => fetch(fragment(address())).catch(() => {}), 2000);
  };
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => now(false), 200);
  });
  search.addEventListener("submit", (event) => {
    event.preventDefault();
    now(true);
  });
  addEventListener("popstate", () => location.reload());
  upload.querySelector("input").addEventListener("change", (event) => {
    if (event.target.files.length) searchByImage(event.target.files[0]);
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    upload.classList.add("over");
  });
  addEventListener("dragleave", () => upload.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    upload.classList.remove("over");
    if (event.dataTransfer.files.length) searchByImage(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      searchByImage(event.clipboardData.files[0]);
    }
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, select, textarea")) {
      event.preventDefault();
      document.getElementById("q").focus();
    }
  });
}

// The last mark of a visitor on a result counts; the number names nobody.
function visitor() {
  let number = sessionStorage.getItem("visitor");
  if (!number) {
    number = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("visitor", number);
  }
  return number;
}

if (results) {
  results.addEventListener("submit", async (event) => {
    if (!event.target.matches(".marks")) return;
    event.preventDefault();
    const body = new FormData(event.target, event.submitter);
    body.append("who", visitor());
    const answer = await fetch(event.target.action, { method: "POST", body }).catch(() => ({ ok: false }));
    event.target.classList.toggle("refused", !answer.ok);
    for (const button of event.target.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(answer.ok && button === event.submitter));
    }
  });
}

const plain = document.getElementById("plain");
if (plain) plain.addEventListener("change", () => document.querySelector(".frame").classList.toggle("plain", plain.checked));
const back = document.querySelector("[data-back]");
if (back && document.referrer.startsWith(location.origin + "/") && history.length > 1) {
  back.addEventListener("click", (event) => {
    event.preventDefault();
    history.back();
  });
}
