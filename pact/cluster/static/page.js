// The live page of pact's root and aggregators. It only reads. Every name from outside is set as text, never as markup:
// nothing here parses HTML, and the page's policy forbids it.
"use strict";

const ROWS = 100; // in a table
const LOTS = 1500, MANY = 250; // nodes from which on cells are smaller, and have no names
const SILENT_MS = 40000, AGAIN_MS = 10000, HIDDEN_MS = 5000;
const ORDER = ["emergency", "failed", "blocked", "drifted", "away", "unknown", "unconfigured", "committed", "connected"];
const MOOD = {emergency: "alarm", held: "alarm", failed: "bad", blocked: "bad", committed: "good", connected: "good"};
const collator = new Intl.Collator("en", {numeric: true});

const nodes = new Map(); // name -> {name, rack, state, held, changes, more, cell}
const busy = new Set(); // names of nodes with changes, holds or an emergency
let about = {}, groups = [], holds = [], records = [];
let offset = 0; // the root's clock minus ours
let source = null, heard = 0, since = 0; // since: when the page last heard something, for people
let filter = null, only = ""; // a function of a name; a state
let open = "", opened = null, fetching = 0; // the node that is shown
let at = ""; // the cell that the keyboard is on

// -- small helpers ---------------------------------------------------------------------------------------------------

const find = (id) => document.getElementById(id);

function make(tag, text, cls, attributes) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = clean(text);
  if (cls) made.className = cls;
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  return made;
}

// Control and direction characters could make one name look like another.
function clean(text) {
  return String(text).slice(0, 4000).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, "\uFFFD");
}

function say(element, text) {
  const cleaned = clean(text);
  if (element.textContent !== cleaned) element.textContent = cleaned;
}

const now = () => Date.now() + offset;

function left(endsMs) {
  let s = Math.max(0, Math.round((endsMs - now()) / 1000));
  const d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  s %= 60;
  return d ? `${d}d ${h}h` : h ? `${h}h ${m}m` : m ? `${m}m ${String(s).padStart(2, "0")}s` : `${s}s`;
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], {hour12: false});
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function sized(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  while (bytes >= 1024 && units.length > 1) { bytes /= 1024; units.shift(); }
  return `${units[0] === "B" ? bytes : bytes.toFixed(1)} ${units[0]}`;
}

// -- node sets, as ClusterShell writes them --------------------------------------------------------------------------

// n[001-128/2,200] for many names: only the last number is folded.
function fold(names) {
  const found = new Map(), plain = [];
  for (const name of [...names].sort(collator.compare)) {
    const part = /^(.*?)(\d{1,15})(\D*)$/.exec(name);
    if (!part) { plain.push(name); continue; }
    const width = part[2].length > 1 && part[2][0] === "0" ? part[2].length : 0;
    const key = JSON.stringify([part[1], part[3], width]);
    const runs = found.get(key) || found.set(key, []).get(key);
    const n = Number(part[2]), last = runs[runs.length - 1];
    if (last && last[1] === n - 1) last[1] = n; else runs.push([n, n]);
  }
  const out = [];
  for (const [key, runs] of found) {
    const [before, after, width] = JSON.parse(key);
    const text = (n) => String(n).padStart(width, "0");
    const one = runs.length === 1 && runs[0][0] === runs[0][1];
    const parts = runs.map(([a, b]) => (a === b ? text(a) : `${text(a)}-${text(b)}`)).join(",");
    out.push(before + (one ? parts : `[${parts}]`) + after);
  }
  return [...out, ...plain].join(",");
}

// A test for names. Nothing is expanded: each known name is compared, so no range is too large. Throws Error.
function nodeSet(text) {
  if (text.length > 20000) throw new Error("that is too long");
  const steps = [];
  let operator = ",", part = "", depth = 0;
  const end = (next) => {
    if (!part.trim()) throw new Error("a part is missing");
    steps.push([operator, matcher(part.trim())]);
    operator = next;
    part = "";
  };
  for (const c of text.trim().replace(/,$/, "")) {
    if (c === "[") depth++;
    if (c === "]") depth--;
    if (depth < 0 || depth > 1) throw new Error("the brackets do not match");
    if (depth === 0 && ",!&^".includes(c)) end(c);
    else part += c;
  }
  if (depth) throw new Error("the brackets do not match");
  end("");
  return (name) => {
    let yes = false;
    for (const [op, test] of steps) {
      const it = test(name);
      yes = op === "!" ? yes && !it : op === "&" ? yes && it : op === "^" ? yes !== it : yes || it;
    }
    return yes;
  };
}

function matcher(part) {
  if (part[0] === "@") throw new Error("groups such as @compute are known to the command line only");
  const ranges = [];
  let pattern = "^", rest = part, digit = false;
  while (rest) {
    const piece = /^(?:\[([^\[\]]*)\]|([A-Za-z0-9_.*?:-]+))/.exec(rest);
    if (!piece) throw new Error(`${JSON.stringify(rest[0])} stands in no name`);
    if (piece[1] !== undefined) {
      const those = piece[1].split(",").map(range);
      if (digit && new Set(those.flatMap((r) => r.widths)).size > 1)
        throw new Error("write the digit into the range, or all numbers equally long");
      if (/^[\[0-9]/.test(rest.slice(piece[0].length))) throw new Error("a number directly behind a range");
      ranges.push(those);
      pattern += "([0-9]+)";
      digit = false;
    } else {
      pattern += piece[2].replace(/[.\\^$|()+{}\[\]]/g, "\\$&").replace(/\*+/g, "[^]*").replace(/\?/g, "[^]");
      digit = /[0-9]$/.test(piece[2]);
      if ((piece[2].match(/\*/g) || []).length > 4) throw new Error("at most four stars");
    }
    rest = rest.slice(piece[0].length);
  }
  const expression = new RegExp(pattern + "$");
  return (name) => {
    const found = expression.exec(name);
    return found !== null && ranges.every((those, i) => those.some((r) => r.has(found[i + 1])));
  };
}

function range(text) {
  const found = /^ *(\d{1,15})(?:-(\d{1,15})(?:\/(\d{1,15}))?)? *$/.exec(text);
  if (!found) throw new Error(`${JSON.stringify(text)} is no range`);
  const a = Number(found[1]), b = Number(found[2] || found[1]), step = Number(found[3] || 1);
  if (b < a || step < 1) throw new Error(`${JSON.stringify(text)} is no range`);
  const width = found[1].length > 1 && found[1][0] === "0" ? found[1].length : 0;
  const has = (digits) => {
    const n = Number(digits);
    return n >= a && n <= b && (n - a) % step === 0 && digits === String(n).padStart(width, "0");
  };
  return {has, widths: [found[1].length, (found[2] || found[1]).length]};
}

// -- the frame -------------------------------------------------------------------------------------------------------

function table(id, heads) {
  const made = make("table", null, "", {id});
  const row = made.createTHead().insertRow();
  for (const head of heads) row.append(make("th", head.replace(/^#/, ""), head[0] === "#" ? "n" : "", {scope: "col"}));
  made.createTBody();
  const scroll = make("div", null, "scroll", {tabindex: "-1"});
  scroll.append(made);
  return scroll;
}

function section(id, title, ...inside) {
  const made = make("section", null, "", {id: `${id}-section`, "aria-labelledby": `${id}-title`});
  const head = make("h2", title, "", {id: `${id}-title`});
  head.append(make("small", "", "", {id: `${id}-count`}));
  made.append(head, ...inside);
  return made;
}

function build() {
  const header = make("header"), name = make("div"), search = make("div", null, "grow");
  name.append(make("h1", "", "", {id: "name"}), make("div", "", "dim", {id: "role"}));
  const input = make("input", null, "mono", {
    id: "set", type: "search", placeholder: "find nodes: n[001-128/2],login*  ( / )", autocomplete: "off", spellcheck: "false",
    "aria-label": "Find nodes by a node set such as n[001-128]", "aria-describedby": "found",
  });
  search.append(input, make("div", "", "dim", {id: "found", role: "status"}));
  header.append(name, search, make("div", "", "", {id: "live", role: "status"}));
  const map = section("map", "Nodes", make("div", null, "dim", {id: "facts"}),
    make("div", null, "", {id: "states", role: "group", "aria-label": "Show one state"}),
    make("div", null, "", {id: "map", role: "group", "aria-label": "One cell for each node; arrow keys move, Enter shows the node"}));
  const first = make("div"), second = make("div"), view = make("main", null, "view", {id: "view"});
  first.append(map, section("records", "Newest records", table("records", ["time", "node", "what", "who", "more"])));
  second.append(
    section("stopped", "Blocked and failed", table("stopped", ["nodes", "change", "by whom, or why"])),
    section("windows", "Windows by time left", table("windows", ["#left", "nodes", "owner", "what"])),
    section("groups", "Groups", table("groups", ["group", "state", "#left", "members", "who, why"])),
    section("held", "Emergencies and holds", table("held", ["nodes", "what"])));
  view.append(first, second);
  const foot = make("footer");
  for (const [key, what] of [["/", "find"], ["n", "next node with something to say"], ["arrows", "move on the map"], ["Enter", "show a node"],
    ["Esc", "close, clear"]]) foot.append(make("kbd", key), ` ${what}   `);
  document.body.append(header, make("div", null, "", {id: "alerts"}), view, foot,
    make("aside", null, "", {id: "node", "aria-label": "One node", tabindex: "-1", hidden: ""}));
  find("plain").remove();
}

// Fill a table's body; a row with the same key stays the same element, so that focus and selection stay.
// A cell is a text, or {text, cls, node, set, ends, bar}.
function fill(id, rows, nothing) {
  const body = find(id).tBodies[0];
  const kept = body.kept || (body.kept = new Map());
  const keys = new Set(rows.map((r) => r.key));
  for (const [key, row] of kept) if (!keys.has(key)) { row.remove(); kept.delete(key); }
  let before = body.firstElementChild;
  for (const {key, cells} of rows) {
    let row = kept.get(key);
    if (!row) kept.set(key, row = make("tr"));
    if (row === before) before = before.nextElementSibling;
    else body.insertBefore(row, before);
    cells.forEach((cell, i) => put(row.cells[i] || row.insertCell(), typeof cell === "object" ? cell : {text: cell}));
  }
  find(id).hidden = !rows.length;
  find(`${id}-section`).classList.toggle("empty", !rows.length);
  const head = find(`${id}-count`);
  if (nothing && !rows.length) say(head, nothing);
}

function put(cell, {text, cls, node, set, ends, bar}) {
  if (cls !== undefined && cell.className !== cls) cell.className = cls;
  const wanted = node || set ? "BUTTON" : "";
  let holder = cell.firstElementChild && cell.firstElementChild.tagName === "BUTTON" ? cell.firstElementChild : null;
  if (wanted && !holder) { cell.textContent = ""; cell.append(holder = make("button", null, "link", {type: "button"})); }
  if (holder) { holder.dataset.node = node || ""; holder.dataset.set = set || ""; }
  if (ends !== undefined) { cell.dataset.ends = ends === null ? "" : ends; tick(cell); return; }
  if (bar !== undefined) {
    let drawn = cell.querySelector(".bar");
    if (!drawn) {
      cell.append(make("div", ""), drawn = make("div", null, "bar"));
      drawn.append(make("span"));
    }
    say(cell.firstElementChild, text);
    drawn.firstElementChild.style.width = `${Math.round(100 * bar)}%`;
    return;
  }
  say(holder || cell, text);
}

function tick(cell) {
  const ends = Number(cell.dataset.ends);
  say(cell, ends ? left(ends) : "");
  cell.classList.toggle("soon", Boolean(ends) && ends - now() < 120000);
}

// -- what comes in ---------------------------------------------------------------------------------------------------

function set(name, row, fresh) {
  let node = nodes.get(name);
  if (!node) nodes.set(name, node = {name, cell: null});
  const moved = node.rack !== row[0], was = node.state;
  [node.rack, node.state, node.held = "", node.changes = [], node.more = 0] = row;
  if (row.length > 2) busy.add(name); else busy.delete(name);
  if (node.cell && !moved) paint(node, fresh && was !== node.state);
  return moved || !node.cell;
}

function whole(told) {
  nodes.clear(); busy.clear();
  for (const [rack, states] of Object.entries(told.plain))
    for (const [state, names] of Object.entries(states)) for (const name of names) set(name, [rack, state]);
  for (const [name, row] of Object.entries(told.set)) set(name, row);
  ({about, groups, holds, records} = told);
  drawMap();
  draw();
}

function news(told) {
  let anew = false;
  for (const [name, row] of Object.entries(told.set || {})) anew = set(name, row, true) || anew;
  for (const name of told.gone || []) {
    anew = nodes.delete(name) || anew;
    busy.delete(name);
  }
  Object.assign(about, told.about || {});
  groups = told.groups || groups;
  holds = told.holds || holds;
  records = records.concat(told.records || []).slice(-ROWS);
  if (anew) drawMap();
  draw();
  if (open && (told.set || {})[open]) show(open);
}

// -- the map ---------------------------------------------------------------------------------------------------------

function drawMap() {
  const map = find("map"), racks = new Map();
  for (const node of nodes.values()) {
    const rack = node.rack || "";
    (racks.get(rack) || racks.set(rack, []).get(rack)).push(node);
  }
  const size = nodes.size > LOTS ? "lots" : nodes.size > MANY ? "many" : "";
  map.className = size;
  const newest = find("records-section"), column = find("view").children[size === "lots" ? 1 : 0];
  if (newest.parentElement !== column) column.append(newest); // a long map leaves room beside it
  const focused = document.activeElement && document.activeElement.dataset && document.activeElement.dataset.cell;
  map.textContent = "";
  for (const rack of [...racks.keys()].sort(collator.compare)) {
    const those = racks.get(rack).sort((a, b) => collator.compare(a.name, b.name));
    const block = make("div", null, "rack"), cells = make("div", null, "cells");
    if (rack || racks.size > 1) block.append(make("h3", rack || "no rack", "", {title: clean(`${rack || "no rack"}: ${plural(those.length, "node")}`)}));
    const fits = Math.max(4, Math.floor((map.clientWidth || 320) / {lots: 8, many: 17, "": 70}[size]));
    cells.wide = racks.size > 1 ? columns(those.length, fits) : fits;
    cells.style.setProperty("--wide", cells.wide);
    for (const node of those) {
      node.cell = make("i", size ? null : node.name, "", {role: "button", tabindex: "-1"});
      node.cell.dataset.cell = node.name;
      paint(node);
      cells.append(node.cell);
    }
    block.append(cells);
    map.append(block);
  }
  const here = nodes.get(at) || nodes.values().next().value;
  if (here) {
    at = here.name;
    here.cell.tabIndex = 0;
    if (focused) here.cell.focus({preventScroll: true});
  }
}

// As many columns as fit, at most 20, so that a rack is a block that is wider than high with a full last row.
function columns(count, fits) {
  let best = 1, least = Infinity;
  for (let wide = Math.min(fits, 20, count); wide >= Math.min(fits, 20, Math.sqrt(count)); wide--) {
    const high = Math.ceil(count / wide), waste = (wide * high - count) / count + Math.abs(Math.log(wide / high / 2)) / 4;
    if (waste < least) [best, least] = [wide, waste];
  }
  return best;
}

const shown = (node) => (!filter || filter(node.name)) && (!only || node.state === only);

function paint(node, fresh) {
  const cls = [ORDER.includes(node.state) ? node.state : "unknown"];
  if (node.held && node.state !== "emergency") cls.push("held");
  if (!shown(node)) cls.push("out");
  if (fresh) cls.push("new");
  node.cell.className = cls.join(" ");
  const title = clean(`${node.name}${node.rack ? `, rack ${node.rack}` : ""}: ${node.state}${node.held ? `, ${node.held}` : ""}`);
  if (node.cell.title !== title) node.cell.title = title;
}

function move(to) {
  if (!to || !to.cell) return;
  const before = nodes.get(at);
  if (before && before.cell) before.cell.tabIndex = -1;
  at = to.name;
  to.cell.tabIndex = 0;
  to.cell.focus();
  to.cell.scrollIntoView({block: "nearest"});
}

const ofCell = (cell) => cell && nodes.get(cell.dataset.cell);

function step(key) {
  const here = nodes.get(at).cell, cells = here.parentElement, all = [...cells.children], i = all.indexOf(here);
  const wide = cells.wide, last = all.length - 1;
  const blocks = [...find("map").children], block = blocks.indexOf(cells.parentElement);
  const into = (b, end) => b && b.querySelector(".cells")[end ? "lastElementChild" : "firstElementChild"];
  if (key === "ArrowRight") return ofCell(all[i + 1] || into(blocks[block + 1], false));
  if (key === "ArrowLeft") return ofCell(all[i - 1] || into(blocks[block - 1], true));
  if (key === "Home") return ofCell(into(blocks[0], false));
  if (key === "End") return ofCell(into(blocks[blocks.length - 1], true));
  const down = key === "ArrowDown", j = i + (down ? wide : -wide);
  if (all[j]) return ofCell(all[j]);
  if (down && Math.floor(i / wide) < Math.floor(last / wide)) return ofCell(all[last]);
  return ofCell(beyond(here.getBoundingClientRect(), blocks, cells.parentElement, down));
}

// The nearest cell of the nearest rack above or below.
function beyond(from, blocks, own, down) {
  const x = from.left + from.width / 2;
  let best = null, least = Infinity;
  for (const block of blocks) {
    const r = block.getBoundingClientRect();
    const dy = down ? r.top - own.getBoundingClientRect().bottom : own.getBoundingClientRect().top - r.bottom;
    if (block === own || dy < -1) continue;
    const far = dy * 4 + Math.max(0, r.left - x, x - r.right);
    if (far < least) [best, least] = [block, far];
  }
  if (!best) return null;
  const cells = best.querySelector(".cells"), wide = cells.wide, count = cells.children.length;
  const column = Math.max(0, Math.min(wide - 1, Math.floor((x - cells.getBoundingClientRect().left) / from.width)));
  const row = down ? 0 : Math.floor((count - 1) / wide);
  return cells.children[Math.min(count - 1, row * wide + column)];
}

// The next node, in the order of the map, that is not as it should be.
function next(back) {
  const cells = [...find("map").querySelectorAll("i")];
  if (back) cells.reverse();
  const from = cells.findIndex((c) => c.dataset.cell === at);
  for (let i = 1; i <= cells.length; i++) {
    const node = ofCell(cells[(from + i) % cells.length]);
    if (!["committed", "connected", "unconfigured"].includes(node.state) && shown(node)) return node;
  }
  return null;
}

// -- the rest --------------------------------------------------------------------------------------------------------

function draw() {
  const root = Boolean(about.root), leads = root && about.leading;
  document.title = `${clean(about.name || "?")}: pact`;
  say(find("name"), about.name || "?");
  say(find("role"), `${leads ? "leading root" : root ? "root, standing by" : "aggregator"} of cluster ${about.cluster || "?"}, pact ${about.version || ""}`);
  drawAlerts(root, leads);
  drawStates();
  for (const id of ["records", "stopped", "windows", "groups", "held"]) find(`${id}-section`).hidden = !leads;
  find("view").style.gridTemplateColumns = leads ? "" : "minmax(0, 1fr)";
  if (!leads) return;
  drawChanges();
  drawGroups();
  drawRecords();
}

function drawAlerts(root, leads) {
  const box = find("alerts"), lines = [];
  if (about.healthy === false) lines.push(["alert trouble", about.trouble || "not healthy"]);
  for (const h of holds) lines.push(["alert", `Nothing rolls back anywhere until ${String(h.ends).slice(0, 19).replace("T", " ")} UTC: ${h.hold} by ${h.owner}: ${h.reason}`]);
  if (root && !leads) lines.push(["alert info", "This root stands by and knows nothing of the nodes: look at the root that leads."]);
  if (!root) lines.push(["alert info", "An aggregator carries records and does not read them: it knows which nodes are connected below it. States, changes, groups and records are on the page of the root."]);
  if (leads && about.catching_up) lines.push(["alert info", "This root began a moment ago and reads its log: changes are not complete yet."]);
  const text = JSON.stringify(lines);
  if (box.dataset.text === text) return;
  box.dataset.text = text;
  box.replaceChildren(...lines.map(([cls, line]) => make("div", line, cls, {role: "alert"})));
}

function drawStates() {
  const counts = {};
  for (const node of nodes.values()) counts[node.state] = (counts[node.state] || 0) + 1;
  say(find("map-count"), nodes.size ? plural(nodes.size, "node") : "no node is known");
  const facts = [`${about.children || 0} children`, `${sized(about.buffered || 0)} buffered`, plural(about.refused || 0, "refused message")];
  if (about.leading) facts.push(about.gseq < 0 ? "no record yet" : `record ${about.gseq}`, `fence ${about.fence}`, plural(about.calls || 0, "call"));
  if (about.untracked) facts.push(`untracked things on ${plural(about.untracked, "node")}`);
  if (about.leading && about.since > 0) facts.push(`changes known since record ${about.since}`);
  say(find("facts"), facts.join(" · "));
  const box = find("states"), rank = (s) => (ORDER.indexOf(s) + 1 || 99);
  for (const state of Object.keys(counts)) {
    if ([...box.children].some((b) => b.dataset.state === state)) continue;
    const button = make("button", null, "", {type: "button", "aria-pressed": "false"});
    button.dataset.state = state;
    button.append(make("i", null, ORDER.includes(state) ? state : "unknown"), make("span", state), make("b", ""));
    box.append(button);
  }
  for (const button of [...box.children].sort((a, b) => rank(a.dataset.state) - rank(b.dataset.state))) {
    const state = button.dataset.state;
    if (!counts[state] && only !== state) { button.remove(); continue; }
    say(button.lastElementChild, (counts[state] || 0).toLocaleString("en"));
    button.setAttribute("aria-pressed", String(only === state));
  }
  const sorted = [...box.children].sort((a, b) => rank(a.dataset.state) - rank(b.dataset.state));
  if (sorted.some((b, i) => box.children[i] !== b)) box.append(...sorted);
}

// Nodes on which the same is so share a row: the table stays short when a thousand nodes change at once.
function gathered(into, key, node, row) {
  const found = into.get(key);
  if (!found) into.set(key, {key, names: [node.name], ...row});
  else {
    found.names.push(node.name);
    if (row.ends !== undefined && row.ends < found.ends) found.ends = row.ends;
  }
}

function those(names) {
  const text = fold(names.slice(0, 2000));
  return names.length === 1 ? {text: names[0], node: names[0], cls: names[0].length < 24 ? "names short" : "names"}
    : {text: `${text.length > 160 ? `${text.slice(0, 160)} ...` : text} (${names.length.toLocaleString("en")})`, set: text, cls: "names"};
}

const what = (count, first) => (count ? first + (count > 1 ? ` and ${count - 1} more` : "") : "nothing yet");

function drawChanges() {
  const windows = new Map(), stopped = new Map(), held = new Map();
  for (const name of busy) {
    const node = nodes.get(name);
    if (!node || !shown(node)) continue;
    if (node.held) gathered(held, node.held, node, {});
    for (const [id, state, owner, ends, count, first, why, group] of node.changes) {
      if (state === "blocked" || state === "failed") gathered(stopped, `${state}\n${owner}\n${first}\n${why}`, node, {id, state, owner, count, first, why});
      else if (ends) gathered(windows, `${owner}\n${first}\n${count}\n${Math.round(ends / 30000)}`, node, {id, owner, ends, count, first, group});
    }
  }
  const sooner = [...windows.values()].sort((a, b) => a.ends - b.ends);
  fill("windows", sooner.slice(0, ROWS).map((w) => ({key: w.key, cells: [
    {ends: w.ends, cls: "left n"}, those(w.names), w.owner, {text: what(w.count, w.first), cls: "names"}]})), "none is open");
  if (sooner.length) say(find("windows-count"), sooner.length > ROWS ? `the first ${ROWS} of ${sooner.length}` : "");
  const stood = [...stopped.values()];
  fill("stopped", stood.slice(0, ROWS).map((s) => ({key: s.key, cells: [
    those(s.names), {text: `${s.state}: ${what(s.count, s.first)}, ${s.owner}`, cls: "wide bad"}, {text: s.why, cls: "wide"}]})), "nothing");
  if (stood.length) say(find("stopped-count"), stood.length > ROWS ? `the first ${ROWS} of ${stood.length}` : "");
  const standing = holds.map((h) => ({key: `fleet ${h.hold}`, cells: ["the whole fleet", {text: `${h.hold} by ${h.owner}: ${h.reason}`, cls: "wide alarm"}]}));
  for (const h of [...held.values()].slice(0, ROWS)) standing.push({key: h.key, cells: [those(h.names), {text: h.key, cls: "wide alarm"}]});
  fill("held", standing, "none");
  if (standing.length) say(find("held-count"), "");
}

function drawGroups() {
  fill("groups", groups.slice(0, ROWS).map((g) => {
    const members = g.members || 0, done = Math.min(g.done || 0, members);
    const way = (g.blocked || []).map(([node, why, holders]) => `${node}: ${holders.map((h) => `${h.command || h.how} (pid ${h.pid}, ${h.user || "?"})`).join(", ") || why}`);
    if ((g.in_way || 0) > way.length) way.push(`and ${g.in_way - way.length} more`);
    return {key: g.id, cells: [
      {text: g.id, set: g.nodes}, {text: g.state, cls: `state ${MOOD[g.state] || (g.state === "paused" ? "bad" : "warn")}`},
      {ends: g.ends_ms, cls: "left n"}, {text: `${done} of ${members}`, bar: members ? done / members : 0},
      {text: `${g.owner}: ${g.message}${way.length ? ` — ${way.join("; ")}` : ""}${g.decision ? ` — ${g.decision} ${g.why}` : ""}`, cls: "wide"}]};
  }), "none is open");
  if (groups.length) say(find("groups-count"), "");
}

function drawRecords() {
  const those_ = records.filter(([, , node]) => !filter || filter(node)).slice().reverse();
  fill("records", those_.map(([gseq, ms, node, type, user, text]) => ({key: `r${gseq}`, cells: [
    {text: clock(ms), cls: "state dim"}, node === "_root" ? {text: "root", cls: "names"} : {text: node, node, cls: "names"},
    {text: type, cls: "state"}, user, {text, cls: "wide dim"}]})), "none yet");
  if (records.length) say(find("records-count"), "");
}

// -- one node --------------------------------------------------------------------------------------------------------

async function show(name) {
  if (open !== name) { opened = document.activeElement; find("node").hidden = true; }
  open = name;
  const mine = ++fetching;
  let found;
  try {
    const answer = await fetch(`/node?name=${encodeURIComponent(name)}`, {cache: "no-store"});
    found = answer.ok ? await answer.json() : {name, state: "unknown here", changes: [], records: []};
  } catch { found = {name, state: "cannot be asked for now", changes: [], records: []}; }
  if (mine !== fetching || open !== name) return;
  drawNode(found);
}

function drawNode(found) {
  const box = find("node"), fresh = box.hidden, parts = [];
  const close = make("button", "close", "close", {type: "button"});
  close.addEventListener("click", hide);
  parts.push(close, make("h2", found.name));
  const row = nodes.get(found.name);
  const state = row ? row.state : found.state;
  const line = make("p", "");
  line.append(make("b", state, MOOD[state] || "warn"), found.rack ? clean(`, rack ${found.rack}`) : "");
  parts.push(line);
  if (found.emergency) parts.push(make("p", `Emergency by ${found.emergency.by} until ${found.emergency.ends}: ${found.emergency.reason}`, "alarm"));
  for (const h of found.holds || []) parts.push(make("p", `Hold ${h.hold}${h.change ? ` of ${h.change}` : ""} by ${h.owner} until ${h.ends}: ${h.reason}`, "alarm"));
  if ((found.blind || []).length) parts.push(make("p", `It does not see: ${found.blind.join(", ")}`, "bad"));
  if (!found.changes) parts.push(make("p", "Nothing else is known here of a single node.", "dim"));
  else if (!found.changes.length) parts.push(make("p", state === "drifted" || MOOD[state] === "bad" ? "Its changes are older than what this root has read." : "Nothing is open.", "dim"));
  for (const c of found.changes || []) parts.push(drawChange(c));
  if ((found.records || []).length) parts.push(make("h2", "Its newest records"));
  for (const [, ms, , type, user, text] of [...found.records].reverse().slice(0, 20))
    parts.push(make("p", `${clock(ms)} ${type}, ${user}: ${text}`, "wide dim"));
  box.replaceChildren(...parts);
  box.hidden = false;
  if (fresh) box.focus();
}

function drawChange(c) {
  const box = make("article"), head = make("p");
  head.append(make("b", `${c.id} ${c.state}`, MOOD[c.state] || "warn"), clean(` by ${c.owner}${c.program ? ` with ${c.program}` : ""}`));
  if (c.ends_ms) {
    const ends = make("span", "", "", {title: `ends ${new Date(c.ends_ms).toISOString()}`});
    ends.dataset.ends = c.ends_ms;
    tick(ends);
    head.append(", ", ends, " left");
  }
  if (c.group) head.append(clean(`, part of ${c.group}`));
  box.append(head);
  if (c.message) box.append(make("p", c.message));
  if (c.why) box.append(make("p", c.why, "bad"));
  if (c.holders.length) box.append(make("p", `used by ${c.holders.join("; ")}`, "bad"));
  const list = make("ul", null, "mono");
  for (const resource of c.resources.slice(0, ROWS)) list.append(make("li", resource));
  if (c.count > Math.min(c.resources.length, ROWS)) list.append(make("li", `and ${c.count - Math.min(c.resources.length, ROWS)} more`));
  box.append(list, make("p", `since ${c.opened}`, "dim"));
  return box;
}

function hide() {
  open = ""; fetching++;
  find("node").hidden = true;
  if (opened && opened.isConnected) opened.focus();
}

// -- what people do --------------------------------------------------------------------------------------------------

function search(text) {
  const input = find("set"), found = find("found");
  if (input.value !== text) input.value = text;
  try {
    filter = text.trim() ? nodeSet(text) : null;
    input.removeAttribute("aria-invalid");
  } catch (error) {
    filter = () => false;
    input.setAttribute("aria-invalid", "true");
    say(found, error.message);
  }
  let count = 0;
  for (const node of nodes.values()) { count += shown(node); paint(node); }
  if (!input.hasAttribute("aria-invalid")) say(found, filter || only ? `${plural(count, "node")} of ${nodes.size.toLocaleString("en")}` : "");
  remember();
  draw();
}

// The search and the node stand in the address, so that a view can be kept and passed on.
function remember() {
  const words = new URLSearchParams();
  if (find("set").value.trim()) words.set("nodes", find("set").value.trim());
  if (only) words.set("state", only);
  history.replaceState(null, "", `${location.pathname}${words.size ? `#${words}` : ""}`);
}

function listen() {
  find("set").addEventListener("input", () => search(find("set").value));
  document.addEventListener("click", (event) => {
    const hit = event.target.closest("[data-node], [data-set], [data-cell], [data-state]");
    if (!hit) return;
    const {node, set: names, cell, state} = hit.dataset;
    if (state !== undefined) { only = only === state ? "" : state; search(find("set").value); }
    else if (cell) { move(nodes.get(cell)); show(cell); }
    else if (node) show(node);
    else if (names) search(names);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = event.target.id === "set", onMap = event.target.dataset && event.target.dataset.cell;
    if (event.key === "Escape") {
      if (open) hide();
      else if (find("set").value || only) { only = ""; search(""); }
      else if (typing) event.target.blur();
    } else if (typing) {
      if (event.key === "Enter") { const hit = [...nodes.values()].filter(shown); if (hit.length === 1) show(hit[0].name); else move(hit.sort((a, b) => collator.compare(a.name, b.name))[0]); }
      return;
    } else if (event.key === "/") find("set").focus();
    else if (event.key === "n" || event.key === "p") move(next(event.key === "p"));
    else if (onMap && (event.key === "Enter" || event.key === " ")) show(onMap);
    else if (onMap && /^(Arrow|Home|End)/.test(event.key)) move(step(event.key));
    else return;
    event.preventDefault();
  });
  let width = 0, later = 0;
  addEventListener("resize", () => {
    clearTimeout(later);
    later = setTimeout(() => { if (width !== innerWidth) { width = innerWidth; drawMap(); } }, 200);
  });
  setInterval(() => document.querySelectorAll("[data-ends]").forEach(tick), 1000);
}

// -- the connection --------------------------------------------------------------------------------------------------

function connect() {
  if (source) source.close();
  heard = Date.now();
  source = new EventSource("/events/live");
  const on = (kind, handle) => source.addEventListener(kind, (event) => {
    const told = JSON.parse(event.data);
    offset = told.now - Date.now();
    heard = since = Date.now();
    if (kind === "whole" && !find("view")) { build(); listen(); restore(); }
    handle(told);
    alive(true);
  });
  on("whole", whole);
  on("news", news);
  on("beat", () => {});
  source.onerror = () => {
    alive(false, "connecting again");
    if (source.readyState === EventSource.CLOSED) refused();
  };
}

function restore() {
  const words = new URLSearchParams(location.hash.slice(1));
  only = words.get("state") || "";
  find("set").value = words.get("nodes") || "";
  setTimeout(() => search(find("set").value));
}

// A browser does not try again by itself after an answer that is no stream.
async function refused() {
  let why = "it does not answer";
  try { why = (await fetch("/events/live", {method: "HEAD"})).status === 503 ? "too many pages are open" : why; } catch { /* it is down */ }
  alive(false, `${why}; next try in ${AGAIN_MS / 1000} s`);
  setTimeout(() => { if (!document.hidden) connect(); }, AGAIN_MS);
}

function alive(yes, why) {
  const sign = find("live");
  if (!sign) return;
  sign.className = yes ? "good" : "bad";
  say(sign, yes ? "live" : `not live since ${clock(since)}: ${why}`);
}

// A hidden page needs no connection: a browser has six for one server, in all of its tabs together.
let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(() => { if (source) source.close(); source = null; }, HIDDEN_MS);
  else if (!source) connect();
});
setInterval(() => { if (source && Date.now() - heard > SILENT_MS) { alive(false, "no sign of life"); connect(); } }, 5000);
connect();
