"use strict";
const page = JSON.parse(document.getElementById("charts").textContent);
const tip = document.getElementById("tip");
const all = (query, inside = document) => [...inside.querySelectorAll(query)];

// Dark or light: the system's, until the button is pressed. CSS does the rest, also in charts.
const theme = document.getElementById("theme");
const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement.style;
const isDark = () => (root.colorScheme ? root.colorScheme === "dark" : system.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light colors" : "Dark colors"; };
theme.onclick = () => { root.colorScheme = isDark() ? "light" : "dark"; nameTheme(); };
system.onchange = nameTheme;
nameTheme();
for (const part of all("#theme, .controls, .charts")) part.hidden = false;

// Tables: a header sorts by what its cells show: numbers by the first one, then texts, then dashes.
const number = /^-?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[-+]\d+)?(?=%|\s|$)/;
const valueOf = (text) => {
  const [found] = text.match(number) ?? [];
  if (found) return [0, Number(found.replaceAll(",", ""))];
  if (text.includes("∞")) return [0, text.includes("-∞") ? -Infinity : Infinity];
  return text === "–" ? [2, ""] : [1, text];
};
const sortBy = (head) => {
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const body = head.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[head.cellIndex].textContent), row]);
  rows.sort(([[kind, a]], [[other, b]]) => kind - other || sign * ((a > b) - (a < b)));
  body.append(...rows.map(([, row]) => row));
};
for (const head of all("thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.onclick = () => sortBy(head);
  head.append(button);
}

// Beside the pointer: the network; of a curve, the nearest epoch.
function tooltip(handler, event, item, value) {
  if (value && item.mark.marktype === "line") {
    const x = vega.point(event, event.target.ownerSVGElement)[0] - this.origin()[0];
    const distance = (point) => Math.abs(point.x - x);
    value = item.mark.items.reduce((a, b) => (distance(b) < distance(a) ? b : a)).tooltip;
  }
  tip.hidden = !value;
  if (!value) return;
  const lines = Object.entries(value).map(([name, text]) => {
    const line = document.createElement("div");
    line.append(name, Object.assign(document.createElement("b"), { textContent: text }));
    return line;
  });
  tip.replaceChildren(...lines);
  const beside = (at, size, room) => Math.max(4, at + size + 24 > room ? at - size - 16 : at + 16);
  tip.style.left = `${beside(event.clientX, tip.offsetWidth, innerWidth)}px`;
  tip.style.top = `${beside(event.clientY, tip.offsetHeight, innerHeight)}px`;
}

// Charts: those of the chosen selection and norm, and those that depend on neither.
const [selection, norm] = all("select");
let level = null;
const draw = ({ columns, rows, views }) => {
  const values = rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
  return Object.entries(views).map(([place, spec]) => {
    const full = vegaLite.compile({ ...spec, data: { values } }, { config: page.config }).spec;
    const container = document.getElementById(place);
    const view = new vega.View(vega.parse(full), { renderer: "svg", container, tooltip });
    return view.signal("shown", level).run();
  });
};
const isChosen = (of, at) => of === selection.value && at === norm.value;
const lasting = page.sources.filter(({ group }) => !group).flatMap(draw);
let chosen = [];
const show = () => {
  for (const view of chosen) view.finalize().container().replaceChildren();
  for (const part of all("[data-norm]")) {
    part.hidden = !isChosen(part.dataset.selection, part.dataset.norm);
  }
  chosen = page.sources.filter(({ group }) => group && isChosen(...group)).flatMap(draw);
  document.querySelector("[role=status]").hidden = chosen.length > 0;
};
for (const button of all("[data-level]")) {
  button.onclick = () => {
    level = button.ariaPressed === "true" ? null : button.dataset.level;
    for (const each of all("[data-level]")) each.ariaPressed = each.dataset.level === level;
    for (const view of [...lasting, ...chosen]) view.signal("shown", level).run();
  };
}
[selection.value, norm.value] = page.first;
selection.onchange = norm.onchange = show;
show();
