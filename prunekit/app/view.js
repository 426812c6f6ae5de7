// One record, drawn. Everything that comes from a model or a user is set as text, never as markup.
const COLOURS = ["#7a8494", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31"];
const SHADES = [[0, 34, 78], [66, 78, 108], [124, 123, 120], [187, 175, 113], [254, 232, 56]];
const SIZE = 480;
let record = null, picture = null, cut = null, heat = false, moved = false, shown = null;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
function shape(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function shade(level) {
  const at = level * (SHADES.length - 1), low = Math.min(Math.floor(at), SHADES.length - 2);
  return SHADES[low].map((c, i) => Math.round(c + (at - low) * (SHADES[low + 1][i] - c)));
}
const dense = () => record.sides[0];
const most = () => Math.max(0, ...record.sides.map((side) => side.cuts.length));
const colour = (number) => COLOURS[number % COLOURS.length];
const kept = (one) => [...one.kept].filter((letter) => letter === "1").length;
const drawable = (one) => record.boxes.length > 0 && one.kept.length === record.boxes.length;

// ---- the pointer
const tip = make("div", { class: "tip", role: "tooltip" });
tip.hidden = true;
function say(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
}
function pointed(canvas, one) {
  canvas.addEventListener("mousemove", (event) => {
    const frame = canvas.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width, y = (event.clientY - frame.top) / frame.height;
    const token = record.boxes.findIndex((box) => box && box[0] <= x && x < box[2] && box[1] <= y && y < box[3]);
    if (token < 0) { tip.hidden = true; return; }
    const lines = [`token ${token + 1} of ${record.boxes.length}`, record.places[token]];
    if (one) {
      const score = one.scores[token];
      const earlier = score === null && one.scores.some((other) => other !== null);
      lines.push(one.kept[token] === "1" ? "stays" : earlier ? "went at an earlier cut" : "goes", score === null ? "no score" : `score ${score}`);
      if (one.before) lines.push(one.before[token] === "1" ? "stayed for the earlier question" : "went for the earlier question");
    }
    say(lines.join("\n"), event);
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
}

// ---- a side
function paint(canvas, one) {
  const pen = canvas.getContext("2d"), hot = heat && one && one.scores.some((score) => score !== null);
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const place = ([left, top, right, bottom]) => [left * canvas.width, top * canvas.height,
    (right - left) * canvas.width + 0.5, (bottom - top) * canvas.height + 0.5];
  record.boxes.forEach((box, token) => {
    if (!one || !box) return;
    const stays = one.kept[token] === "1", level = one.heat.slice(2 * token, 2 * token + 2);
    const [x, y, wide, high] = place(box);
    pen.fillStyle = hot ? (level === "--" ? "rgba(255,255,255,.88)" : `rgba(${shade(parseInt(level, 16) / 254)},.72)`) : "rgba(255,255,255,.82)";
    if (hot || !stays) pen.fillRect(x, y, wide, high);
    const changed = moved && one.before && (one.before[token] === "1") !== stays;
    if (!(hot && stays) && !changed) return;
    pen.strokeStyle = changed ? (stays ? "#0072B2" : "#D55E00") : "#fff";
    pen.lineWidth = changed ? 4 : 2;
    pen.setLineDash(changed && !stays ? [5, 4] : []);
    pen.strokeRect(x + 2, y + 2, wide - 4, high - 4);
    pen.setLineDash([]);
  });
  if (one) return;
  pen.strokeStyle = "#E6B800";
  pen.lineWidth = 4;
  record.regions.forEach((box) => pen.strokeRect(...place(box)));
}
function answer(side) {
  const words = make("p", { class: "answer" });
  side.words.forEach(([text, probability], number) => {
    const same = dense().words[number] && dense().words[number][0] === text;
    const word = make("span", { class: same ? "word" : "word other" }, text);
    word.style.setProperty("--sure", probability);
    const about = `token ${number + 1}, probability ${probability}${same ? "" : `\nthe dense model says: ${(dense().words[number] || ["(nothing)"])[0]}`}`;
    word.addEventListener("mousemove", (event) => say(about, event));
    word.addEventListener("mouseleave", () => { tip.hidden = true; });
    words.append(word);
  });
  if (!side.words.length) words.append("(nothing)");
  if (side.right !== null) words.append(make("span", { class: side.right >= 0.5 ? "right" : "wrong" }, side.right >= 0.5 ? "✓" : "✗"));
  return words;
}
function card(side, number) {
  const head = make("h3", {}, side.label);
  head.style.borderColor = colour(number);
  if (side.error) return make("figure", {}, head, make("p", { class: "about" }, side.about), make("p", { class: "problem" }, side.error));
  const one = cut && side.cuts.length ? side.cuts[Math.min(cut, side.cuts.length) - 1] : null;
  const canvas = make("canvas", { width: SIZE, height: Math.round((SIZE * picture.naturalHeight) / picture.naturalWidth) });
  const seen = one && drawable(one) ? one : null;
  paint(canvas, seen);
  pointed(canvas, seen);
  const count = one ? kept(one) : record.boxes.length;
  let state = one ? `${count} tokens stay, cut ${one.where}` : `all ${count} tokens`;
  if (one && !seen) state = `cut ${one.where}: the places of its tokens are not known`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${side.label}: ${state}`);
  const common = seen && moved && one.before ? [make("p", { class: "about common" }, `${one.common} of ${count} stayed for the earlier question, too`)] : [];
  return make("figure", { "data-side": side.label }, head, make("p", { class: "about" }, side.about), canvas, answer(side), make("p", { class: "about" }, state), ...common);
}

// ---- costs
const ms = (seconds) => `${(1000 * seconds).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
function size(count, units, step) {
  let unit = 0;
  while (count >= step && unit < units.length - 1) { count /= step; unit += 1; }
  return `${count.toPrecision(3)} ${units[unit]}`;
}
function costs() {
  const base = dense();
  const bar = (share, text, number) => {
    const fill = make("i", {});
    fill.style.width = `${Math.min(100, 100 * share)}%`;
    fill.style.background = colour(number);
    return make("td", {}, make("span", { class: "bar" }, fill), make("b", {}, `${(100 * share).toFixed(0)} %`), ` ${text}`);
  };
  const rows = record.sides.filter((side) => !side.error).map((side) => {
    const number = record.sides.indexOf(side);
    return make("tr", {}, make("th", { scope: "row" }, side.label), make("td", {}, side.answer || "(nothing)"),
      bar(side.flops / base.flops, size(side.flops, ["FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs"], 1000), number),
      bar(side.kv_bytes / base.kv_bytes, size(side.kv_bytes, ["B", "KiB", "MiB", "GiB"], 1024), number),
      bar(side.prefill_ratio, side === base ? ms(side.prefill_seconds) : `${ms(side.prefill_seconds)}, dense ${ms(side.dense_seconds)}`, number), make("td", {}, ms(side.answer_seconds)));
  });
  const names = ["", "answer", "FLOPs of the decoder's prefill", "KV cache", "prefill time, encoder included", "whole answer"];
  return make("table", { class: "costs" }, make("thead", {}, make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...rows));
}
function layers() {
  const sides = record.sides.filter((side) => !side.error), depth = dense().tokens_per_layer.length;
  const top = Math.max(...sides.flatMap((side) => side.tokens_per_layer)), wide = 720, high = 170, left = 40;
  const x = (layer) => left + ((wide - left - 8) * layer) / depth, y = (count) => high - 24 - ((high - 36) * count) / top;
  const drawing = shape("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": "tokens in each decoder layer" });
  const label = (text, at, down, anchor) => { const node = shape("text", { x: at, y: down, "text-anchor": anchor }); node.textContent = text; drawing.append(node); };
  for (const count of [0, top]) {
    drawing.append(shape("line", { x1: left, x2: wide - 8, y1: y(count), y2: y(count), class: "grid" }));
    label(count, left - 6, y(count) + 4, "end");
  }
  for (let layer = 0; layer < depth; layer += Math.ceil(depth / 16)) label(layer, (x(layer) + x(layer + 1)) / 2, high - 8, "middle");
  sides.forEach((side) => {
    const number = record.sides.indexOf(side), shift = (sides.indexOf(side) - sides.length / 2) * 1.2;
    const points = side.tokens_per_layer.map((count, layer) => `${x(layer)},${y(count) + shift} ${x(layer + 1)},${y(count) + shift}`).join(" ");
    const line = shape("polyline", { points, stroke: colour(number), fill: "none", "stroke-width": 2 });
    line.addEventListener("mousemove", (event) => say(`${side.label}: ${side.tokens_per_layer.join(" ")}`, event));
    line.addEventListener("mouseleave", () => { tip.hidden = true; });
    drawing.append(line);
  });
  const names = record.sides.map((side, number) => { const name = make("span", {}, side.label); name.style.setProperty("--dot", colour(number)); return name; });
  return make("div", { class: "layers" }, drawing, make("div", { class: "legend" }, ...names));
}

// ---- the whole
function save() {
  const blob = new Blob([JSON.stringify(record.query)], { type: "application/json" });
  const anchor = make("a", { href: URL.createObjectURL(blob), download: "prunekit-explorer.json" });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
}
const link = () => `${location.origin}${location.pathname}?state=${encodeURIComponent(JSON.stringify(record.query))}`;
function check(id, text, value, change) {
  const input = make("input", { type: "checkbox", id });
  input.checked = value;
  input.addEventListener("change", () => { change(input.checked); cards(); });
  return make("label", {}, input, text);
}
function cards() {
  element.querySelector(".cut-label").textContent = cut ? `after cut ${cut} of ${most()}` : "before any cut";
  element.querySelector(".cards").replaceChildren(...record.sides.map(card));
}
function draw() {
  const slider = make("input", { type: "range", id: "cut", min: 0, max: most(), step: 1, "aria-label": "cut" });
  slider.value = cut;
  slider.addEventListener("input", () => { cut = Number(slider.value); cards(); });
  const tools = make("div", { class: "tools" }, make("label", {}, "cuts", slider), make("output", { class: "cut-label", for: "cut" }),
    check("heat", "scores as heat map", heat, (on) => { heat = on; }));
  if (record.query.before) tools.append(check("moved", "what the question moved", moved, (on) => { moved = on; }));
  const file = make("button", { type: "button", class: "save", title: "this question, its picture and settings as a file" }, "save");
  file.addEventListener("click", save);
  tools.append(make("span", { class: "gap" }));
  if (!record.query.upload || record.query.upload.data) tools.append(file); // it comes with the last side
  if (!record.query.upload) tools.append(make("a", { class: "link", title: "the address of this question and its settings", href: link() }, "link"));
  const lines = [make("h2", {}, record.query.question)];
  const known = record.answers.length ? [`right: ${record.answers.join(" / ")}`] : [];
  const before = record.query.before ? [`earlier question: ${record.query.before}`] : [];
  if (known.length + before.length) lines.push(make("p", { class: "about" }, [...known, ...before].join("  ·  ")));
  if (moved) lines.push(make("p", { class: "about" }, "Blue frame: stays for this question only. Orange, dashed: stayed for the earlier one only."));
  element.querySelector(".view").replaceChildren(...lines, tools, make("div", { class: "cards" }), make("h3", {}, "Cost"), costs(),
    make("h3", {}, "Tokens in each decoder layer"), layers(), tip);
  cards();
}
async function update() {
  const next = props.value;
  if (!next || !next.sides) return;
  const image = new Image();
  image.src = next.picture;
  await image.decode();
  const key = JSON.stringify({ ...next.query, upload: null }) + next.picture.length;
  const fresh = shown !== key;
  const last = record && cut === most();
  [record, picture, shown] = [next, image, key];
  if (fresh) moved = Boolean(record.query.before);
  if (fresh || last || cut === null) cut = most();
  element.dataset.sides = record.sides.length;
  draw();
}
watch("value", update);
update();
