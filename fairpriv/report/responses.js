// Filters the responses by words, dimension, verdict and flip; the address keeps what is chosen. No library, no network.
"use strict";
const find = (id) => document.getElementById(id);
const rows = [...document.querySelectorAll("tbody tr")];
const texts = rows.map((row) => row.textContent.toLowerCase());
const said = rows.map((row) => [...row.querySelectorAll("[data-verdict]")].map((one) => one.dataset));
const chosen = new URLSearchParams(location.hash.slice(1));
const names = ["filter", "dimension", "judge", "verdict", "flip"];

function show() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [dimension, judge, verdict, flip] = names.slice(1).map((id) => find(id).value);
  const disputed = find("disputed")?.checked;
  let count = 0;
  rows.forEach((row, i) => {
    const fits = words.every((w) => (w.length > 1 && w[0] === "-" ? !texts[i].includes(w.slice(1)) : texts[i].includes(w)));
    const one = judge ? said[i].find((told) => told.judge === judge) : said[i][0];
    const judged = one && ["", one.verdict].includes(verdict) && one.turn.startsWith(flip);
    row.hidden = !(fits && judged && ["", row.dataset.dimension].includes(dimension) && (!disputed || "disputed" in row.dataset));
    count += !row.hidden;
  });
  find("count").textContent = count === rows.length ? "" : `${count} of ${rows.length} responses`;
  const now = new URLSearchParams();
  for (const id of names) if (find(id).value) now.set(id, find(id).value);
  if (disputed) now.set("disputed", "1");
  history.replaceState(null, "", `#${now}`);
}

document.documentElement.classList.add("script");
for (const id of names) {
  if (chosen.has(id)) find(id).value = chosen.get(id);
  find(id).addEventListener(id === "filter" ? "input" : "change", show);
}
if (find("disputed")) {
  find("disputed").checked = chosen.has("disputed");
  find("disputed").addEventListener("change", show);
}
if (chosen.size > 0) show();
