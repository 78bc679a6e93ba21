// The report's own script: tables that sort and filter, the trade-off drawn, each cell's config. No library, no network.
// Names from results reach the page as text only (textContent, setAttribute), never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const SVG = find("plain").namespaceURI;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  return furnish(node, attributes, children);
}
function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  return furnish(node, attributes, children);
}
function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
function brief(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return String(+value.toFixed(size < 2 ? 3 : size < 100 ? 2 : 1));
}

// What is chosen stays in the address, so that a link shows the same again.
const chosen = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
function keep() {
  const now = new URLSearchParams();
  const set = (key, value, usual) => value !== usual && now.set(key, value);
  set("q", find("filter").value, "");
  set("sound", String(find("sound").checked), "false");
  set("theme", document.documentElement.dataset.theme ?? "", "");
  const panel = find("panels");
  if (panel) {
    set("x", axes[find("x").value]?.name ?? "", usual.x);
    set("y", axes[find("y").value]?.name ?? "", usual.y);
    set("of", find("setting").value, usual.of);
    set("bars", String(find("bars").checked), usual.bars);
    for (const name of hidden) now.append("off", name);
  }
  for (const head of document.querySelectorAll("th[aria-sort]")) {
    now.append("sort", [head.closest("table").dataset.name, head.cellIndex, head.getAttribute("aria-sort")].join(":"));
  }
  history.replaceState(null, "", `#${now}`);
}

// Files of what is shown.
function save(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function csv(table) {
  const cell = (node) => {
    const text = node.textContent.replace(/\s+/g, " ").trim();
    const safe = /^(?:[=@]|[+-](?!\.?\d))/.test(text) ? `'${text}` : text; // a spreadsheet would take it for a formula
    return /[",]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const rows = [...table.rows].filter((row) => !row.hidden && !row.dataset.of);
  const lines = rows.map((row) => [...row.cells].filter((node) => !node.classList.contains("whole")).map(cell).join(","));
  return new Blob([`${lines.join("\n")}\n`], { type: "text/csv" });
}
const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "font-weight", "opacity"];
function standalone(svg) {
  const copy = svg.cloneNode(true);
  const [from, to] = [svg, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  from.forEach((node, i) => {
    const style = getComputedStyle(node);
    for (const name of STYLES) to[i].style.setProperty(name, style.getPropertyValue(name));
  });
  return copy;
}
function picture(box) {
  const around = box.getBoundingClientRect();
  const drawn = [...box.querySelectorAll("svg")].filter((svg) => !svg.parentNode.closest("svg"));
  const whole = draw("svg", { width: around.width, height: around.height, viewBox: `0 0 ${around.width} ${around.height}` });
  const page = getComputedStyle(box.classList.contains("paper") ? box : document.body).backgroundColor;
  whole.append(draw("rect", { width: "100%", height: "100%", fill: page }));
  for (const svg of drawn) {
    const at = svg.getBoundingClientRect();
    const title = svg.parentNode.querySelector("figcaption");
    if (title) {
      const ink = getComputedStyle(title).color;
      whole.append(draw("text", { x: at.left - around.left + 2, y: at.top - around.top - 5, "font-size": 13, fill: ink }, title.textContent));
    }
    const copy = standalone(svg);
    furnish(copy, { x: at.left - around.left, y: at.top - around.top, width: at.width, height: at.height }, []);
    whole.append(copy);
  }
  return whole;
}
function savePicture(box, name, kind) {
  const svg = picture(box);
  const text = new XMLSerializer().serializeToString(svg);
  if (kind === "SVG") return save(`${name}.svg`, new Blob([text], { type: "image/svg+xml" }));
  const image = new Image();
  image.onload = () => {
    const canvas = make("canvas", { width: 2 * svg.getAttribute("width"), height: 2 * svg.getAttribute("height") });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(`${name}.png`, blob));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}
function saves(name, kinds, act) {
  const buttons = kinds.map((kind) =>
    make("button", { type: "button", class: "save-as", "aria-label": `save ${name} as ${kind}`, onclick: () => act(kind) }, kind),
  );
  return make("div", { class: "save" }, ...buttons);
}

// Filter: every word must occur in the row's own words; with a minus before it, it must not.
const hidden = new Set(); // series switched off in the legend
let shown = data.groups.map(() => true);
function applyFilter() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const sound = find("sound").checked;
  const fits = (text) => words.every((w) => (w.length > 1 && w[0] === "-" ? !text.includes(w.slice(1)) : text.includes(w)));
  const told = (i) => {
    const group = data.groups[i];
    return `${group.name}${group.degenerate ? " degenerate" : ""}${group.failed ? " failed" : ""}`.toLowerCase();
  };
  shown = data.groups.map((group, i) => fits(told(i)) && !(sound && group.degenerate));
  for (const row of document.querySelectorAll("tr[data-group]")) row.hidden = !shown[row.dataset.group];
  for (const row of document.querySelectorAll("tr[data-cell]")) {
    const cell = data.cells[row.dataset.cell];
    const state = `${cell.error ? " failed" : " completed"}${cell.degenerate.length ? " degenerate" : ""}`;
    const text = `${data.groups[cell.group].name} ${cell.seed} ${cell.id}${state}`.toLowerCase();
    row.hidden = !fits(text) || (sound && cell.degenerate.length > 0);
    if (row.nextSibling && row.nextSibling.dataset && row.nextSibling.dataset.of) row.nextSibling.hidden = row.hidden;
  }
  const count = shown.filter(Boolean).length;
  find("count").textContent = count === shown.length ? "" : `${count} of ${shown.length} rows`;
  plot();
  keep();
}

// Sort: best or greatest first, then the other way, then as it was.
function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.append(button);
    const sort = (wanted) => {
      const first = head.classList.contains("number") && head.dataset.better !== "-1" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const next = { [first]: second, [second]: null }[head.getAttribute("aria-sort")];
      const order = wanted ?? (next === undefined ? first : next);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      for (const row of body.querySelectorAll("tr[data-of]")) row.remove();
      table.classList.toggle("sorted", order !== null);
      if (order === null) return body.append(...original);
      head.setAttribute("aria-sort", order);
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
      const sign = order === "ascending" ? 1 : -1;
      const empty = (text) => text === "" || text === "–";
      const keys = new Map(original.map((row) => [row, key(row)]));
      body.append(
        ...[...original].sort((a, b) => {
          const [x, y] = [keys.get(a), keys.get(b)];
          if (empty(x) || empty(y)) return empty(x) - empty(y); // what is missing stays last
          const [p, q] = [Number(x), Number(y)];
          return sign * (isNaN(p) || isNaN(q) ? x.localeCompare(y, "en", { numeric: true }) : p - q);
        }),
      );
    };
    button.addEventListener("click", () => {
      sort();
      keep();
    });
    for (const text of chosen.getAll("sort")) {
      const [name, at, order] = text.split(":");
      if (name === table.dataset.name && Number(at) === column) sort(order === "descending" ? order : "ascending");
    }
  });
}

// A cell's config, metrics and environment, below its row.
function unfold(row) {
  const next = row.nextSibling;
  const open = row.classList.toggle("open");
  row.querySelector("button.unfold").setAttribute("aria-expanded", String(open));
  if (next && next.dataset && next.dataset.of) return next.remove();
  const cell = data.cells[row.dataset.cell];
  const { versions, git, device } = data.environments[cell.environment];
  const config = cell.config.flatMap((i) => Object.entries(data.sections[i]));
  const pairs = (title, rows) =>
    rows.length === 0
      ? null
      : make(
          "section",
          {},
          make("h3", {}, title),
          make("table", {}, ...rows.map(([name, ...r]) => make("tr", {}, make("th", { scope: "row" }, String(name)), ...r.map((text) => make("td", {}, String(text)))))),
        );
  const interval = ([, , lo, hi]) => (lo === undefined || lo === null || hi === null ? "" : `[${brief(lo)}, ${brief(hi)}]`);
  const code = git ? [["commit", `${git.commit ?? "–"}${git.dirty ? ", with changes" : ""}`]] : [["commit", "not recorded"]];
  const said = [...(cell.error ? [["failed", cell.error]] : []), ...cell.degenerate.map((why) => ["degenerate", why])];
  const detail = make(
    "div",
    { class: "detail" },
    pairs("Outcome", said),
    pairs("Configuration", config),
    pairs("Metrics, with the cell's own 95 % intervals", cell.metrics.map((m) => [data.labels[m[0]], brief(m[1]), interval(m)])),
    pairs("Environment", [...code, ["device", device || "–"], ...Object.entries(versions)]),
    pairs("Seconds", Object.entries(cell.seconds).map(([stage, value]) => [stage, brief(value)])),
    pairs("Files", Object.entries(cell.artifacts)),
  );
  row.after(make("tr", { "data-of": cell.id }, make("td", { colspan: row.cells.length }, detail)));
}

// The trade-off. An axis is a metric, or a config key whose values are numbers.
const numeric = data.place
  .map((name, at) => ({ name, label: name, better: 0, at }))
  .filter(({ at }) => {
    const values = data.groups.map((group) => group.place[at]).filter((value) => value !== null);
    return values.every((value) => typeof value === "number") && new Set(values).size > 1;
  });
const axes = [...data.metrics, ...numeric];
function place(group, axis) {
  if (axis.at === undefined) return group.values[data.metrics.indexOf(axis)];
  const value = group.place[axis.at];
  return value === null ? undefined : [value, null, null, 1];
}

// The value by which rows are ranked: that of guessing where a value is beyond it.
const ranked = (axis, value) => (typeof axis.guess === "number" && axis.better * (value - axis.guess) > 0 ? axis.guess : value);

// Indices of the points [x, y] that none equals or betters in both coordinates and betters in one.
function front(points, better) {
  const scaled = points.map(([x, y]) => [better[0] * x, better[1] * y]);
  const order = points.map((_, i) => i).sort((i, j) => scaled[j][0] - scaled[i][0] || scaled[j][1] - scaled[i][1]);
  const found = [];
  let [most, at] = [-Infinity, NaN];
  for (const i of order) {
    const [x, y] = scaled[i];
    if (y > most || (y === most && x === at)) found.push(i);
    if (y > most) [most, at] = [y, x];
  }
  return found;
}

const SHAPES = {
  o: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
  s: (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  "^": (r) => `M0,${-1.2 * r}L${1.2 * r},${r}H${-1.2 * r}z`,
  v: (r) => `M0,${1.2 * r}L${1.2 * r},${-r}H${-1.2 * r}z`,
  D: (r) => `M0,${-1.3 * r}L${1.3 * r},0L0,${1.3 * r}L${-1.3 * r},0z`,
  P: (r) => `M${-r / 2.5},${-r}h${r / 1.25}v${r * 0.6}h${r * 0.6}v${r / 1.25}h${-r * 0.6}v${r * 0.6}h${-r / 1.25}v${-r * 0.6}h${-r * 0.6}v${-r / 1.25}h${r * 0.6}z`,
  X: (r) => `M${-r},${-r * 0.5}L${-r * 0.5},${-r}L0,${-r * 0.5}L${r * 0.5},${-r}L${r},${-r * 0.5}L${r * 0.5},0L${r},${r * 0.5}L${r * 0.5},${r}L0,${r * 0.5}L${-r * 0.5},${r}L${-r},${r * 0.5}L${-r * 0.5},0z`,
  p: (r) => `M0,${-1.1 * r}L${1.05 * r},${-0.34 * r}L${0.65 * r},${0.9 * r}H${-0.65 * r}L${-1.05 * r},${-0.34 * r}z`,
};
const ink = (colour) => (colour === "black" ? "var(--ink)" : colour);
const mark = ([colour, shape], r, hollow) =>
  draw("path", { d: SHAPES[shape](r), fill: hollow ? "var(--page)" : ink(colour), stroke: ink(colour), "stroke-width": hollow ? 1.6 : 0.8 });

function ticks(lo, hi, count) {
  const rough = (hi - lo) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) ?? 10 * power;
  const found = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function limits(values) {
  let [lo, hi] = [Math.min(...values), Math.max(...values)];
  if (lo === hi) [lo, hi] = [lo - (Math.abs(lo) * 0.05 || 0.05), hi + (Math.abs(hi) * 0.05 || 0.05)];
  const margin = 0.06 * (hi - lo);
  return [lo - margin, hi + margin];
}

function title(axis, [up, down], room) {
  const long = `${axis.label} (${{ 1: `higher is better ${up}`, "-1": `lower is better ${down}`, 0: "no direction" }[axis.better]})`;
  return long.length * 6.2 < room ? long : `${axis.label} ${{ 1: "↑", "-1": "↓", 0: "" }[axis.better]}`;
}

function panel(name, groups, axisX, axisY, width) {
  const height = Math.round(Math.min(560, Math.max(250, width * 0.6)));
  const [left, right, top, bottom] = [58, 14, 10, 44];
  const points = groups
    .map((group) => ({ group, x: place(group, axisX), y: place(group, axisY) }))
    .filter(({ x, y }) => x && y);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": name || "trade-off" });
  const whole = make("figure", { style: `width:${width}px` }, name ? make("figcaption", {}, name) : null, svg);
  if (points.length === 0) {
    svg.append(draw("text", { x: left, y: height / 2, class: "axis" }, "no row has both metrics"));
    return whole;
  }
  const bars = find("bars").checked;
  const ends = (e) => (bars && e[1] !== null && e[2] !== null ? [e[0], e[1], e[2]] : [e[0]]);
  const [x0, x1] = limits(points.flatMap(({ x }) => ends(x)));
  const [y0, y1] = limits(points.flatMap(({ y }) => ends(y)));
  const sx = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
  const sy = (v) => height - bottom - ((v - y0) / (y1 - y0)) * (height - top - bottom);
  for (const v of ticks(x0, x1, width < 420 ? 4 : 7)) {
    svg.append(draw("line", { x1: sx(v), x2: sx(v), y1: top, y2: height - bottom, class: "grid" }));
    svg.append(draw("text", { x: sx(v), y: height - bottom + 15, class: "tick", "text-anchor": "middle" }, brief(v)));
  }
  for (const v of ticks(y0, y1, 5)) {
    svg.append(draw("line", { x1: left, x2: width - right, y1: sy(v), y2: sy(v), class: "grid" }));
    svg.append(draw("text", { x: left - 6, y: sy(v) + 4, class: "tick", "text-anchor": "end" }, brief(v)));
  }
  const middle = [(left + width - right) / 2, (top + height - bottom) / 2];
  svg.append(draw("text", { x: middle[0], y: height - 8, class: "axis", "text-anchor": "middle" }, title(axisX, "→←", width - left)));
  const turned = `translate(12 ${middle[1]}) rotate(-90)`;
  svg.append(draw("text", { transform: turned, class: "axis", "text-anchor": "middle" }, title(axisY, "↑↓", height - 20)));
  const better = [axisX.better, axisY.better];
  const sound = points.filter(({ group }) => group.ranked);
  const worth = sound.map(({ x, y }) => [ranked(axisX, x[0]), ranked(axisY, y[0])]);
  const best = better.every(Boolean) ? front(worth, better).map((i) => sound[i]) : [];
  if (best.length > 0) {
    const corners = best.map(({ x, y }) => [sx(x[0]), sy(y[0])]).sort((p, q) => p[0] - q[0]);
    const edgeX = better[0] > 0 ? left : width - right;
    const edgeY = better[1] > 0 ? height - bottom : top;
    // From the edge behind the best of y to the edge behind the best of x, in steps round what is dominated.
    const along = better[0] > 0 ? corners : corners.reverse();
    const path = along.map(([x, y], i) => `${i === 0 ? `M${edgeX},${y}` : `V${y}`}H${x}`).join("") + `V${edgeY}`;
    svg.append(draw("path", { d: path, class: "front" }));
  }
  const named = points.length <= 14 && width > 300;
  for (const { group, x, y } of points) {
    const style = data.styles[group.series];
    const [px, py] = [sx(x[0]), sy(y[0])];
    const on = best.some((point) => point.group === group);
    const node = draw("g", { class: "point", tabindex: 0, role: "button", "data-series": group.series });
    if (bars) {
      if (x[1] !== null && x[2] !== null) node.append(draw("path", { d: `M${sx(x[1])},${py}H${sx(x[2])}`, stroke: ink(style[0]) }));
      if (y[1] !== null && y[2] !== null) node.append(draw("path", { d: `M${px},${sy(y[1])}V${sy(y[2])}`, stroke: ink(style[0]) }));
    }
    const at = draw("g", { transform: `translate(${px} ${py})` }, mark(style, points.length > CROWD ? 3 : 5, group.degenerate > 0));
    at.append(draw("circle", { r: 11, fill: "transparent" })); // easier to hit
    node.append(at);
    const told = describe(group, axisX, axisY, x, y, on);
    node.setAttribute("aria-label", told.join("; "));
    const over = (event) => tip(event, told, node);
    furnish(node, { onpointerenter: over, onfocus: over, onpointerleave: hideTip, onblur: hideTip, onclick: () => jump(group) }, []);
    node.addEventListener("keydown", (event) => event.key === "Enter" && jump(group));
    if (named && group.label) node.append(draw("text", { x: px + 8, y: py - 6, class: "label" }, group.label));
    svg.append(node);
  }
  return whole;
}

function describe(group, axisX, axisY, x, y, on) {
  const said = (axis, [mean, lo, hi, n, floor]) =>
    `${axis.label}: ${brief(mean)}${lo === null ? "" : ` [${brief(lo)}, ${brief(hi)}]`}${floor ? ` ${floor}` : ""}` +
    (axis.at === undefined ? `, n = ${n}` : "");
  return [
    group.name,
    said(axisX, x),
    said(axisY, y),
    on ? "on the Pareto front of these axes" : null,
    group.degenerate ? `degenerate: ${group.degenerate} of ${group.completed} cells; takes no part in the front` : null,
    group.control !== null ? `control: takes no part in the front: ${group.control}` : null,
    group.ranked || group.degenerate || group.control !== null ? null : "game.alpha=0.5: takes no part in the front",
    group.failed ? `failed: ${group.failed} cells` : null,
  ].filter(Boolean);
}

function tip(event, lines, node) {
  const box = find("tip");
  box.replaceChildren(...lines.map((line, i) => make(i === 0 ? "b" : "span", {}, line)));
  box.hidden = false;
  const around = find("tradeoff").getBoundingClientRect();
  const point = node.querySelector("circle").getBoundingClientRect();
  const x = point.left + point.width / 2 - around.left;
  const room = around.width - box.offsetWidth;
  box.style.left = `${Math.max(0, Math.min(room, x + 14))}px`;
  const above = point.top - around.top - box.offsetHeight - 2;
  box.style.top = `${above < 0 ? point.bottom - around.top + 4 : above}px`;
  for (const other of document.querySelectorAll(".point")) {
    other.classList.toggle("faint", other.dataset.series !== node.dataset.series);
  }
}
function hideTip() {
  find("tip").hidden = true;
  for (const other of document.querySelectorAll(".point.faint")) other.classList.remove("faint");
}
function jump(group) {
  const row = document.querySelector(`tr[data-group="${data.groups.indexOf(group)}"]`);
  if (!row) return;
  for (const old of document.querySelectorAll("tr.hit")) old.classList.remove("hit");
  row.closest("details")?.setAttribute("open", "");
  row.classList.add("hit");
  row.scrollIntoView({ block: "center", behavior: "smooth" });
}

const EACH = "each";
const CROWD = 150; // more points are drawn small, and without intervals unless these are asked for
function plot() {
  const box = find("panels");
  if (!box) return;
  const [axisX, axisY] = [axes[find("x").value], axes[find("y").value]];
  if (!axisX || !axisY) return;
  const wanted = find("setting").value;
  const groups = data.groups.filter((group, i) => shown[i] && !hidden.has(group.series));
  const total = box.clientWidth || 600;
  hideTip();
  const kept = data.settings.map((name, i) => [name, groups.filter((group) => group.setting === i)]);
  const parts =
    wanted === EACH
      ? kept.filter(([, members]) => members.length > 0)
      : [["", wanted === "all" ? groups : kept[Number(wanted)][1]]];
  const columns = parts.length === 1 ? 1 : Math.max(1, Math.min(parts.length, Math.floor(total / 330)));
  const width = Math.floor(Math.min(1100, (total - 12 * (columns - 1)) / columns));
  const drawn = parts.map(([name, members]) => panel(name, members, axisX, axisY, width));
  box.replaceChildren(...(drawn.length > 0 ? drawn : [make("p", { class: "note" }, "The filter leaves nothing to draw.")]));
  const direct = axisX.better && axisY.better;
  find("direction").textContent = direct
    ? "Dashed: the Pareto front of the means, among rows without a degenerate cell that are no controls and not of game.alpha=0.5."
    : "No Pareto front: an axis has no direction.";
}

let usual = {}; // what the controls say at first, which the address leaves out
function controls() {
  find("bars").checked = data.groups.length <= CROWD;
  const option = (text, value, selected) => make("option", { value, selected }, text);
  const at = (name, otherwise) => Math.max(0, name ? axes.findIndex((axis) => axis.name === name) : otherwise);
  const [first, second] = data.panel ? [at(data.panel[0]), at(data.panel[1])] : [0, Math.min(1, axes.length - 1)];
  const known = (name, otherwise) => (axes.some((axis) => axis.name === name) ? at(name) : otherwise);
  const [x, y] = [known(chosen.get("x"), first), known(chosen.get("y"), second)];
  const names = new Map();
  for (const axis of axes) names.set(axis.label, (names.get(axis.label) ?? 0) + 1);
  const text = (axis) => `${axis.label}${names.get(axis.label) > 1 ? ` (${axis.name})` : ""}${{ 1: " ↑", "-1": " ↓", 0: "" }[axis.better]}`;
  find("x").append(...axes.map((axis, i) => option(text(axis), i, i === x)));
  find("y").append(...axes.map((axis, i) => option(text(axis), i, i === y)));
  const many = data.settings.length > 1;
  const apart = data.settings.length <= (window.innerWidth > 800 ? 24 : 4);
  if (many) find("setting").append(option("each apart", EACH, apart), option("all in one", "all"));
  find("setting").append(...data.settings.map((name, i) => option(name, i, !apart && i === 0)));
  find("setting").parentNode.hidden = !many;
  usual = { x: axes[first]?.name ?? "", y: axes[second]?.name ?? "", of: find("setting").value, bars: String(find("bars").checked) };
  if ([...find("setting").options].some((one) => one.value === chosen.get("of"))) find("setting").value = chosen.get("of");
  if (chosen.has("bars")) find("bars").checked = chosen.get("bars") === "true";
  for (const name of chosen.getAll("off")) hidden.add(name);
  const again = () => {
    plot();
    keep();
  };
  for (const id of ["x", "y", "setting", "bars"]) find(id).addEventListener("change", again);
  find("swap").addEventListener("click", () => {
    [find("x").value, find("y").value] = [find("y").value, find("x").value];
    again();
  });
  find("save-plot").append(saves("tradeoff", ["SVG", "PNG"], (kind) => savePicture(find("panels"), "tradeoff", kind)));
  const series = [...new Set(data.groups.map((group) => group.series))];
  find("legend").append(
    ...series.slice(0, 40).map((name) => {
      const sign = draw("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" }, mark(data.styles[name], 5, false));
      const button = make("button", { type: "button", "aria-pressed": String(!hidden.has(name)), title: "show or hide" }, sign, name);
      button.addEventListener("click", () => {
        hidden.has(name) ? hidden.delete(name) : hidden.add(name);
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        again();
      });
      return button;
    }),
  );
  if (data.groups.some((group) => group.degenerate)) {
    const sign = draw("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" }, mark(["#555", "o"], 5, true));
    find("legend").append(make("span", {}, sign, "hollow: degenerate in some cell"));
  }
}

function theme() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const tell = () => find("theme").setAttribute("aria-pressed", String(dark()));
  if (["dark", "light"].includes(chosen.get("theme"))) root.dataset.theme = chosen.get("theme");
  tell();
  find("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    tell();
    keep();
  });
}

document.documentElement.classList.add("script");
theme();
if (find("panels")) controls();
for (const table of document.querySelectorAll("table.sortable")) {
  sortable(table);
  const name = table.dataset.name;
  table.closest(".scroll").before(saves(name, ["CSV"], () => save(`${name}.csv`, csv(table))));
}
for (const side of document.querySelectorAll(".side > .save")) side.nextElementSibling.prepend(side);
for (const figure of document.querySelectorAll(".figures figure")) {
  const name = figure.dataset.name.toLowerCase().replaceAll(" ", "_");
  figure.append(saves(name, ["SVG", "PNG"], (kind) => savePicture(figure.querySelector(".paper"), name, kind)));
}
for (const row of document.querySelectorAll("tr[data-cell]")) {
  row.querySelector("button.unfold").addEventListener("click", () => unfold(row));
}
let waiting = 0;
find("filter").value = chosen.get("q") ?? "";
find("sound").checked = chosen.get("sound") === "true";
find("filter").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(applyFilter, 120);
});
find("sound").addEventListener("change", applyFilter);
if (find("filter").value || find("sound").checked) applyFilter();
else plot();
let drawnAt = find("panels")?.clientWidth;
addEventListener("resize", () => {
  const width = find("panels")?.clientWidth;
  if (width !== drawnAt) plot();
  drawnAt = width;
});
