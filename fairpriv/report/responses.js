// Filters the responses by words, dimension and verdict; the address keeps what is chosen. No library, no network.
"use strict";
const find = (id) => document.getElementById(id);
const rows = [...document.querySelectorAll("tbody tr")];
const texts = rows.map((row) => row.textContent.toLowerCase());
const chosen = new URLSearchParams(location.hash.slice(1));

function show() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [dimension, turn] = [find("dimension").value, find("turn").value];
  let count = 0;
  rows.forEach((row, i) => {
    const fits = words.every((w) => (w.length > 1 && w[0] === "-" ? !texts[i].includes(w.slice(1)) : texts[i].includes(w)));
    row.hidden = !(fits && ["", row.dataset.dimension].includes(dimension) && ["", row.dataset.turn].includes(turn));
    count += !row.hidden;
  });
  find("count").textContent = count === rows.length ? "" : `${count} of ${rows.length} responses`;
  const now = new URLSearchParams();
  for (const id of ["filter", "dimension", "turn"]) if (find(id).value) now.set(id, find(id).value);
  history.replaceState(null, "", `#${now}`);
}

document.documentElement.classList.add("script");
for (const id of ["filter", "dimension", "turn"]) {
  if (chosen.has(id)) find(id).value = chosen.get(id);
  find(id).addEventListener(id === "filter" ? "input" : "change", show);
}
if (chosen.size > 0) show();
