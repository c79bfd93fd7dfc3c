// The page: the list, the decisions, the keys, and what goes to and from the server.

import { Editor } from "./editor.js";
import { Mask } from "./mask.js";

const LISTED = 150;
const SAVE_AFTER = 250;

const $ = (id) => document.getElementById(id);
const state = {
  images: [],
  current: null,
  mask: null,
  version: "none",
  whole: false,
  base: null,
  saving: Promise.resolve(),
  timer: 0,
  asked: 0,
  full: false,
  opening: 0,
  thumbnails: new Map(),
};

const editor = new Editor($("stage"), {
  changed: () => {
    state.base = null;
    editor.forget();
    changed();
  },
  prompted: (prompts) => segment(prompts),
  asksFull: () => sharpen(),
});

// --- the server ---

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch {
    throw new Error("lora-prep review does not answer: is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const error = new Error(said.error || `${response.status} ${response.statusText}`);
  error.status = response.status;
  error.headers = response.headers;
  throw error;
}

const send = (path, method, value) =>
  ask(path, {
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(value),
  });

const bytes = async (response) => new Uint8Array(await response.arrayBuffer());

function tell(message) {
  $("message").textContent = message;
  $("message").hidden = !message;
}

function busy(what) {
  $("busy").textContent = what;
  $("busy").hidden = !what;
}

// --- saving ---

function saved(which, text = which) {
  $("saved").dataset.state = which;
  $("saved").textContent = text;
}

function changed() {
  describe();
  if (!state.mask?.unsaved) return;
  saved("saving", "saving …");
  clearTimeout(state.timer);
  state.timer = setTimeout(save, SAVE_AFTER);
}

// One at a time, in order; resolves to whether all is on the disk.
function save() {
  clearTimeout(state.timer);
  state.saving = state.saving.then(saveNow, saveNow);
  return state.saving;
}

async function saveNow() {
  const { mask, current } = state;
  if (!mask?.unsaved) return true;
  const rect = state.whole ? (mask.takeUnsaved(), mask.whole()) : mask.takeUnsaved();
  try {
    const query = new URLSearchParams(rect);
    const response = await ask(`images/${current.id}/mask?${query}`, {
      method: "PUT",
      headers: { "Content-Type": "application/octet-stream", "X-Version": state.version },
      body: mask.rows(rect),
    });
    const answer = await response.json();
    state.version = answer.version;
    state.whole = false;
    current.edited = true;
    thumbnail(current).src = address(current, answer.version);
    if (!mask.unsaved) saved("saved");
    if (answer.warning) tell(answer.warning);
    list();
    return true;
  } catch (error) {
    mask.note(rect);
    saved("failed", "not saved");
    const what = error.status === 412 ? `${error.message}. Reload the page to see it.` : error.message;
    tell(`Not saved: ${what}`);
    return false;
  }
}

window.addEventListener("beforeunload", (event) => {
  if (state.mask?.unsaved) event.preventDefault();
});

// --- one image ---

async function open(image) {
  if (!image || (state.mask && !(await save()))) return;
  const turn = ++state.opening;
  state.current = image;
  state.mask = null;
  state.base = null;
  state.full = false;
  editor.show(null, null);
  tell("");
  busy("opening …");
  list();
  try {
    const [picture, mask] = await Promise.all([load(image, ""), loadMask(image)]);
    if (turn !== state.opening) return;
    Object.assign(state, mask);
    editor.show(picture, state.mask);
    if (editor.tool === "click") look();
  } catch (error) {
    if (turn === state.opening) tell(`${image.name}: ${error.message}`);
  } finally {
    if (turn === state.opening) busy("");
  }
  if (turn === state.opening) describe();
}

async function load(image, query) {
  const response = await ask(`images/${image.id}/picture${query}`);
  return createImageBitmap(await response.blob());
}

async function loadMask(image) {
  try {
    const response = await ask(`images/${image.id}/mask`);
    return { ...sized(response.headers, await bytes(response)), whole: false };
  } catch (error) {
    if (!error.headers?.has("X-Width")) throw error;
    tell(`${error.message}. What you paint here takes its place.`);
    return { ...sized(error.headers, null), whole: true };
  }
}

function sized(headers, data) {
  const [width, height] = ["X-Width", "X-Height"].map((name) => Number(headers.get(name)));
  const mask = new Mask(width, height, data ?? new Uint8Array(width * height));
  return { mask, version: headers.get("X-Version") };
}

async function sharpen() {
  if (state.full || !state.current) return;
  state.full = true;
  const turn = state.opening;
  const picture = await load(state.current, "?full").catch(() => null);
  if (picture && turn === state.opening) editor.sharpen(picture);
}

// --- what changes a mask as a whole ---

async function operate(operation) {
  const { mask, current } = state;
  if (!mask || !(await save())) return;
  tell("");
  try {
    const amount = $("amount").value.trim() || "0";
    const response = await send(`images/${current.id}/change`, "POST", { operation, amount });
    const data = await bytes(response);
    if (mask !== state.mask || mask.unsaved) return;
    state.base = null;
    editor.forget();
    mask.become(data);
    changed();
  } catch (error) {
    tell(error.message);
  }
}

async function look() {
  if (!state.current) return;
  const turn = state.opening;
  $("model").textContent = "the model looks at the image …";
  try {
    const response = await send(`images/${state.current.id}/look`, "POST", {});
    if (turn === state.opening) $("model").textContent = (await response.json()).segmenter;
  } catch (error) {
    $("model").textContent = error.message;
  }
}

// Every answer is laid over the mask as it was before the first click.
async function segment(prompts) {
  const { mask, current } = state;
  if (!mask) return;
  const asked = ++state.asked;
  state.base ??= mask.data.slice();
  tell("");
  busy("segmenting …");
  try {
    const response = await send(`images/${current.id}/segment`, "POST", prompts);
    const answer = await bytes(response);
    if (asked !== state.asked || mask !== state.mask || !state.base) return;
    mask.become(combined(state.base, answer, $("combine").value));
    changed();
    editor.draw();
  } catch (error) {
    if (asked === state.asked) tell(error.message);
  } finally {
    if (asked === state.asked) busy("");
  }
}

function combined(base, answer, how) {
  const data = how === "replace" ? answer : base.slice();
  if (how === "add") answer.forEach((value, i) => value && (data[i] = 255));
  if (how === "subtract") answer.forEach((value, i) => value && (data[i] = 0));
  return data;
}

function step(which) {
  if (!state.mask || editor.drag) return;
  state.base = null;
  state.asked++;
  busy("");
  editor.forget();
  state.mask[which]();
  changed();
}

function forget() {
  state.base = null;
  state.asked++;
  busy("");
  editor.forget();
}

// --- decisions, and the way through the images ---

const shown = (image) =>
  ({
    all: true,
    undecided: !image.verdict,
    accepted: image.verdict === "accepted",
    rejected: image.verdict === "rejected",
    issues: image.issues.length > 0,
    edited: image.edited,
  })[$("filter").value];

function neighbour(distance) {
  const { images, current } = state;
  for (let i = images.indexOf(current) + distance; i >= 0 && i < images.length; i += distance) {
    if (shown(images[i])) return images[i];
  }
  return null;
}

async function decide(verdict) {
  const image = state.current;
  if (!image || !(await save())) return;
  const taken = image.verdict === verdict || verdict === null;
  try {
    const response = await send(`images/${image.id}/decision`, "PUT", { verdict: taken ? null : verdict });
    Object.assign(image, await response.json());
  } catch (error) {
    tell(error.message);
    return;
  }
  tell("");
  const next = taken ? null : neighbour(1);
  list();
  describe();
  if (next && image === state.current) await open(next);
}

function list() {
  const visible = state.images.filter((image) => shown(image) || image === state.current);
  const at = Math.max(0, visible.indexOf(state.current));
  const start = Math.max(0, at - LISTED);
  const rows = visible.slice(start, at + LISTED).map(row);
  const more = (count, where) => {
    const item = document.createElement("li");
    item.className = "more";
    item.textContent = `${count} ${where}`;
    return item;
  };
  if (start > 0) rows.unshift(more(start, "before"));
  if (at + LISTED < visible.length) rows.push(more(visible.length - at - LISTED, "after"));
  if (rows.length === 0) rows.push(more("none", "to show"));
  const focused = $("list").contains(document.activeElement);
  $("list").replaceChildren(...rows);
  const current = $("list").querySelector("[aria-current]");
  current?.scrollIntoView({ block: "nearest" });
  if (focused) current?.focus();
  count();
}

function row(image) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.id = image.id;
  if (image === state.current) button.setAttribute("aria-current", "true");
  button.append(thumbnail(image), span("what", image.name));
  const marks = span("marks", "");
  const worst = image.issues.some((issue) => issue.severity === "error") ? "error" : "warning";
  const issues = image.issues.length === 1 ? "1 issue" : `${image.issues.length} issues`;
  if (image.verdict) marks.append(span(image.verdict, image.verdict));
  if (image.edited) marks.append(span("", "edited"));
  if (image.issues.length) marks.append(span(worst, issues));
  button.append(marks);
  button.title = image.name;
  button.addEventListener("click", () => open(image));
  item.append(button);
  return item;
}

// Kept, so that a list made anew does not ask for its pictures again.
function thumbnail(image) {
  if (!state.thumbnails.has(image.id)) {
    const made = document.createElement("img");
    made.alt = "";
    made.loading = "lazy";
    made.fetchPriority = "low";
    made.src = address(image, "");
    state.thumbnails.set(image.id, made);
  }
  return state.thumbnails.get(image.id);
}

const address = (image, version) => `api/images/${image.id}/thumbnail?${version.slice(0, 12)}`;

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

function count() {
  const total = (verdict) => state.images.filter((image) => image.verdict === verdict).length;
  const accepted = total("accepted");
  const rejected = total("rejected");
  const left = state.images.length - accepted - rejected;
  $("counts").textContent = `${accepted} accepted, ${rejected} rejected, ${left} to go`;
  $("progress").max = state.images.length || 1;
  $("progress").value = accepted + rejected;
  $("previous").disabled = !neighbour(-1);
  $("next").disabled = !neighbour(1);
}

function describe() {
  const { current, mask } = state;
  $("name").textContent = current?.name ?? "";
  const share = mask && `${(100 * mask.coverage()).toFixed(1)} % covered`;
  $("facts").textContent = mask ? `${mask.width} × ${mask.height}, ${share}` : "";
  const found = (current?.issues ?? []).map((issue) => {
    const item = document.createElement("li");
    item.className = issue.severity;
    item.textContent = `${issue.code} ${issue.message}`;
    return item;
  });
  $("issues").replaceChildren(...found);
  for (const verdict of ["accept", "reject"]) {
    $(verdict).setAttribute("aria-pressed", String(current?.verdict === `${verdict}ed`));
  }
  $("undo").disabled = !mask?.done.length;
  $("redo").disabled = !mask?.undone.length;
  editor.draw();
}

// --- tools and keys ---

function choose(tool) {
  editor.tool = tool;
  $("stage").dataset.tool = tool;
  for (const button of $("tools").children) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
  $("clicking").hidden = tool !== "click";
  $("brush").hidden = tool !== "paint" && tool !== "erase";
  if (tool === "click") look();
  else forget();
}

// The slider is logarithmic: .5 to 512 pixels.
const toRadius = (value) => 0.5 * 2 ** (value / 10);

function brush(radius) {
  editor.setRadius(radius);
  $("size").value = String(Math.round(10 * Math.log2(editor.radius / 0.5)));
  $("size-shown").textContent = `${Math.round(2 * editor.radius)} px`;
}

function nextLook() {
  const looks = ["dim", "tint", "off"];
  $("look").value = looks[(looks.indexOf($("look").value) + 1) % looks.length];
  showAs();
}

function showAs() {
  editor.look = $("look").value;
  editor.draw();
}

const keys = {
  a: () => decide("accepted"),
  r: () => decide("rejected"),
  u: () => decide(null),
  n: () => open(neighbour(1)),
  arrowright: () => open(neighbour(1)),
  p: () => open(neighbour(-1)),
  arrowleft: () => open(neighbour(-1)),
  b: () => choose("paint"),
  e: () => choose("erase"),
  c: () => choose("click"),
  h: () => choose("pan"),
  m: nextLook,
  i: () => operate("invert"),
  l: () => operate("fill"),
  "[": () => brush(editor.radius / 1.25),
  "]": () => brush(editor.radius * 1.25),
  0: () => editor.fit(),
  "+": () => editor.zoom(1.25),
  "=": () => editor.zoom(1.25),
  "-": () => editor.zoom(0.8),
  escape: forget,
  "?": () => $("help").showModal(),
};

const controlKeys = {
  z: (event) => step(event.shiftKey ? "redo" : "undo"),
  y: () => step("redo"),
  s: () => save(),
};

document.addEventListener("keydown", (event) => {
  const types = event.target.matches("input:not([type=range]), select, dialog *");
  if (types || event.isComposing) return;
  const key = event.key.toLowerCase();
  if (key === " ") {
    if (event.target.matches("button")) return;
    editor.holdsSpace = true;
    event.preventDefault();
    return;
  }
  const slides = event.target.matches("input") && key.startsWith("arrow");
  const control = event.ctrlKey || event.metaKey;
  const found = control ? controlKeys[key] : event.altKey || slides ? null : keys[key];
  if (!found || (event.repeat && "aru".includes(key) && !control)) return;
  event.preventDefault();
  found(event);
});

document.addEventListener("keyup", (event) => {
  if (event.key === " ") editor.holdsSpace = false;
});

$("accept").addEventListener("click", () => decide("accepted"));
$("reject").addEventListener("click", () => decide("rejected"));
$("next").addEventListener("click", () => open(neighbour(1)));
$("previous").addEventListener("click", () => open(neighbour(-1)));
$("undo").addEventListener("click", () => step("undo"));
$("redo").addEventListener("click", () => step("redo"));
$("fit").addEventListener("click", () => editor.fit());
$("in").addEventListener("click", () => editor.zoom(1.25));
$("out").addEventListener("click", () => editor.zoom(0.8));
$("look").addEventListener("change", showAs);
$("combine").addEventListener("change", forget);
$("size").addEventListener("input", () => brush(toRadius(Number($("size").value))));
$("help-button").addEventListener("click", () => $("help").showModal());
$("filter").addEventListener("change", () => {
  list();
  if (state.current && !shown(state.current)) open(neighbour(1) ?? neighbour(-1));
});
for (const button of $("tools").children) {
  button.addEventListener("click", () => choose(button.dataset.tool));
}
for (const button of document.querySelectorAll("[data-operation]")) {
  button.addEventListener("click", () => operate(button.dataset.operation));
}

brush(16);
try {
  const answer = await (await ask("images")).json();
  state.images = answer.images;
  $("title").textContent = `lora-prep review: ${answer.title}`;
  document.title = `${answer.title} – lora-prep review`;
  list();
  await open(state.images[0]);
} catch (error) {
  tell(error.message);
}
