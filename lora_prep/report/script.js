"use strict";
// Whatever comes from the data set is set as text or as an attribute, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------ pictures, when they are seen
const blocks = new Map();

function pictureOf(number) {
  const block = Math.floor(number / data.chunk);
  if (!blocks.has(block)) {
    blocks.set(block, JSON.parse($(`pictures-${block}`).textContent));
    if (blocks.size > 24) blocks.delete(blocks.keys().next().value);
  }
  return blocks.get(block)[number % data.chunk];
}

function drawing(number, name, zoom = false) {
  const [width, height, jpeg, shade, edge, wider] = pictureOf(number);
  const all = { x: 0, y: 0, width, height };
  const box = zoom && wider ? around(wider) : `0 0 ${width} ${height}`;
  const made = shape("svg", { viewBox: box, role: "img", "aria-label": name });
  made.append(shape("image", { ...all, class: "photo", href: `data:image/jpeg;base64,${jpeg}` }));
  if (shade) {
    made.append(
      shape("rect", { ...all, class: "paper" }),
      shape("image", { ...all, class: "shade", href: `data:image/png;base64,${shade}` }),
    );
  }
  if (wider) made.append(shape("path", { class: "wider", d: wider }));
  if (edge) made.append(shape("path", { class: "edge", d: edge }));
  return made;
}

function around(path) {
  const numbers = path.match(/[-\d.e]+/g).map(Number);
  const [xs, ys] = [0, 1].map((odd) => numbers.filter((_, i) => i % 2 === odd));
  const [left, top, right, bottom] = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  const rim = 0.12 * Math.max(right - left, bottom - top);
  return `${left - rim} ${top - rim} ${right - left + 2 * rim} ${bottom - top + 2 * rim}`;
}

// Text with what stands between two backticks as code.
function ticked(text) {
  const parts = text.split("`");
  if (parts.length % 2 === 0) return [text];
  return parts.map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

const seen = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) target.replaceChildren();
      else if (!target.firstChild) {
        target.append(drawing(Number(target.dataset.picture), target.dataset.name, "zoom" in target.dataset));
      }
    }
  },
  { rootMargin: "500px 0px" },
);
for (const frame of document.querySelectorAll("[data-picture]")) seen.observe(frame);

// ------------------------------------------------------------------ what is said of an image
const percent = (value) => `${(100 * value).toFixed(1)} %`;
const plain = (value, digits) => (value === null ? null : value.toFixed(digits));

function short(image) {
  const said = [];
  if (image.coverage !== null) said.push(`covers ${percent(image.coverage)}`);
  if (image.face !== null) said.push(`face ${image.face.toFixed(0)} px`);
  if (image.similarity !== null) said.push(`sim ${image.similarity.toFixed(2)}`);
  if (image.sharpness !== null) said.push(`sharp ${image.sharpness.toFixed(0)}`);
  return said;
}

function provenance(image) {
  const words = {
    made: "made by lora-prep",
    "by hand": "made or edited by hand",
    rejected: "rejected in the review",
    accepted: "made by lora-prep, accepted in the review",
    stale: "made by lora-prep; the image has changed since",
    "no mask": "there is no mask",
    skipped: "left out on request",
    failed: "could not be made",
  };
  const told = words[image.state] ?? image.state;
  return image.decided && image.decided !== image.state ? `${told}; ${image.decided} in the review` : told;
}

function facts(image) {
  const rows = [
    ["size", image.width === null ? null : `${image.width} × ${image.height} px, ${image.bytes}`],
    ["mask", provenance(image)],
    ["mask size", image.mask && (image.mask[0] !== image.width || image.mask[1] !== image.height)
      ? `${image.mask[0]} × ${image.mask[1]} px: not the image's` : null],
    ["coverage", image.coverage === null ? null : `${percent(image.coverage)} of the image`],
    ["parts", image.parts === null || image.parts === 1 ? null : String(image.parts)],
    ["erosion", image.erosion === "" ? null
      : `${image.erosion}${image.recorded ? "" : " (assumed)"}: about ${percent(image.before)} before, ${percent(image.kept)} of it kept`],
    ["faces", image.faces === null ? "not looked for" : String(image.faces)],
    ["face size", image.face === null ? null : `${image.face.toFixed(0)} px, shorter side`],
    ["similarity", image.similarity === null ? "not known" : plain(image.similarity, 3)],
    ["sharpness", image.sharpness === null ? null : `${plain(image.sharpness, 1)} at the ${image.sharpAt}`],
    ["caption", image.caption ?? `– (${image.captionFault})`],
    ["unreadable", image.problem || null],
    ["mask unreadable", image.maskProblem || null],
  ];
  const list = element("dl");
  for (const [name, value] of rows) {
    if (value !== null) list.append(element("dt", {}, name), element("dd", { dir: "auto" }, value));
  }
  return list;
}

function issueList(image) {
  if (!image.issues.length) return [element("p", { class: "quiet" }, "No issues.")];
  const list = element("ul");
  for (const [code, message] of image.issues) {
    const kind = data.kinds[code];
    list.append(
      element("li", {},
        element("span", { class: `code ${kind.severity}` }, code), ` ${kind.title}: `,
        element("span", { class: "text" }, message),
        element("br"), "→ ", ...ticked(kind.fix)),
    );
  }
  return [element("h3", {}, "Issues"), list];
}

// ------------------------------------------------------------------ the gallery
const grid = $("grid");
const cards = data.images.map((image, index) => {
  const frame = element("div", { class: "frame" });
  if (image.picture === null) {
    frame.classList.add("nothing");
    frame.append(image.problem || "no picture");
  } else {
    frame.dataset.picture = image.picture;
    frame.dataset.name = image.name;
    seen.observe(frame);
  }
  const second = element("span", { class: "line2" }, ...short(image).map((text) => element("span", {}, text)));
  const third = element("span", { class: "line2" });
  const bad = ["rejected", "stale", "failed", "no mask"].includes(image.state);
  const told = /mask|^rejected$/.test(image.state) ? image.state : `mask ${image.state}`;
  third.append(element("span", { class: bad ? "state bad" : "state" }, told));
  for (const code of new Set(image.issues.map(([code]) => code))) {
    third.append(element("span", { class: `badge ${data.kinds[code].severity}` }, code));
  }
  const name = element("span", { class: "name", title: image.name }, image.name);
  const card = element("button", { type: "button", class: "card", tabindex: "-1" }, frame, name, second, third);
  card.setAttribute("aria-label", `${image.name}, ${[...short(image), image.state].join(", ")}, ${image.issues.length === 1 ? "1 issue" : `${image.issues.length} issues`}`);
  card.addEventListener("click", () => look(index));
  card.addEventListener("focus", () => enter(index));
  return element("li", {}, card);
});
const haystacks = data.images.map((image) =>
  [image.name, image.caption ?? "", image.state, image.decided, ...image.issues.flat()].join("\n").toLowerCase(),
);
let order = [];
let current = -1;

function option(select, value, label) {
  select.append(element("option", { value }, label));
}

function countBy(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => (a < b ? -1 : 1));
}

for (const [code, count] of countBy(data.images.flatMap((i) => [...new Set(i.issues.map(([c]) => c))]))) {
  option($("code"), code, `${code} ${data.kinds[code].title} (${count})`);
}
for (const [state, count] of countBy(data.images.map((image) => image.state))) {
  option($("state"), state, `${state} (${count})`);
}

function passes(index) {
  const image = data.images[index];
  const code = $("code").value;
  if (code === "*" && !image.issues.length) return false;
  if (code === "-" && image.issues.length) return false;
  if (code.length > 1 && !image.issues.some(([found]) => found === code)) return false;
  if ($("state").value && image.state !== $("state").value) return false;
  const words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  return words.every((word) => haystacks[index].includes(word));
}

function sortKey(index) {
  const image = data.images[index];
  const by = $("sort").value;
  return by === "name" ? index : by === "issues" ? image.issues.length : image[by];
}

function refresh() {
  const sign = $("order").getAttribute("aria-pressed") === "true" ? -1 : 1;
  order = data.images.map((_, index) => index).filter(passes);
  order.sort((a, b) => {
    const [left, right] = [sortKey(a), sortKey(b)];
    if (left === null || right === null) return (left === null) - (right === null) || a - b;
    return sign * (left - right) || a - b;
  });
  grid.replaceChildren(...order.map((index) => cards[index]));
  $("count").textContent = `${order.length} of ${data.images.length} images`;
  enter(order.includes(current) ? current : (order[0] ?? -1));
}

function button(index) {
  return cards[index].firstChild;
}

function enter(index) {
  if (current >= 0) button(current).tabIndex = -1;
  current = index;
  if (current >= 0) button(current).tabIndex = 0;
}

function columns() {
  return getComputedStyle(grid).gridTemplateColumns.split(" ").length;
}

grid.addEventListener("keydown", (event) => {
  const at = order.indexOf(current);
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(),
    PageUp: -4 * columns(), PageDown: 4 * columns(), Home: -at, End: order.length - 1 - at,
  };
  if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const to = at + steps[event.key];
  if (to < 0 || to >= order.length) return;
  button(order[to]).focus();
});

for (const id of ["text", "code", "state", "sort"]) $(id).addEventListener("input", refresh);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("reset", () => {
  descending(false);
  setTimeout(() => { showView("overlay"); refresh(); });
});

function descending(on) {
  $("order").setAttribute("aria-pressed", String(on));
  $("order").textContent = on ? "Descending" : "Ascending";
}

$("order").addEventListener("click", () => {
  descending($("order").getAttribute("aria-pressed") !== "true");
  refresh();
});

for (const find of document.querySelectorAll(".find")) {
  if (!data.images.some((image) => image.issues.some(([code]) => code === find.dataset.code))) continue;
  find.hidden = false;
  find.addEventListener("click", () => {
    $("controls").reset();
    $("code").value = find.dataset.code;
    setTimeout(() => {
      $("code").value = find.dataset.code;
      refresh();
      $("gallery").scrollIntoView();
      if (current >= 0) button(current).focus({ preventScroll: true });
    });
  });
}

// ------------------------------------------------------------------ what is shown of a picture
const VIEWS = ["image", "line", "overlay", "mask", "erosion"];

function showView(view) {
  document.body.dataset.view = view;
  document.querySelector(`input[name="view"][value="${view}"]`).checked = true;
}

$("views").addEventListener("input", (event) => showView(event.target.value));

// ------------------------------------------------------------------ one image, large
const viewer = $("viewer");
let looked = -1; // which is not `current`: a closing dialog gives the focus back to where it was

function look(index) {
  enter(index);
  looked = index;
  const image = data.images[index];
  $("viewer-name").textContent = image.name;
  $("viewer-place").textContent = `${order.indexOf(index) + 1} of ${order.length}`;
  const picture = image.picture === null
    ? element("div", { class: "nothing" }, image.problem || "no picture")
    : drawing(image.picture, image.name);
  $("viewer-picture").replaceChildren(picture);
  $("viewer-facts").replaceChildren(facts(image), ...issueList(image));
  if (!viewer.open) viewer.showModal();
}

function step(by) {
  const to = order.indexOf(current) + by;
  if (to >= 0 && to < order.length) look(order[to]);
}

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
viewer.addEventListener("close", () => button(looked).focus());
viewer.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (by === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  step(by);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input[type=search], select")) return;
  if (event.key === "m") {
    showView(VIEWS[(VIEWS.indexOf(document.body.dataset.view) + 1) % VIEWS.length]);
  } else if (event.key === "/" && !viewer.open) {
    event.preventDefault();
    $("text").focus();
  }
});

// ------------------------------------------------------------------ light and dark
const THEMES = { "": "as the system", light: "light", dark: "dark" };

function showTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = `Theme: ${THEMES[theme]}`;
}

$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length];
  showTheme(next);
  try { localStorage.setItem("lora-prep-theme", next); } catch { /* a browser that keeps nothing */ }
});

let kept = "";
try { kept = localStorage.getItem("lora-prep-theme") ?? ""; } catch { /* the same */ }
showTheme(kept in THEMES ? kept : "");
$("theme").hidden = false;
refresh();
