"use strict";
// Everything that comes from runs is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const tip = byId("tip");

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
    return node;
  }
  // Colours repeat after eight methods; the next eight are hollow.
  function swatch(row) {
    const dot = make("span", { class: "swatch" });
    dot.style.background = row.hollow ? "#fff" : row.colour;
    dot.style.borderColor = row.colour;
    return dot;
  }
  const percent = (x) => (100 * x).toFixed(1);

  // ---- hover: what belongs to one row is marked everywhere
  const marked = new Map();
  function belongs(node, rows, text) {
    for (const row of rows) {
      if (!marked.has(row)) marked.set(row, []);
      marked.get(row).push(node);
    }
    node.addEventListener("mouseenter", (event) => { mark(rows); if (text) say(text, event); });
    node.addEventListener("mousemove", (event) => { if (text) say(text, event); });
    node.addEventListener("mouseleave", () => { mark([]); tip.hidden = true; });
  }
  function mark(rows) {
    const chosen = new Set(rows.flatMap((row) => marked.get(row)));
    for (const node of new Set([...marked.values()].flat())) {
      node.classList.toggle("on", chosen.has(node));
      if (node instanceof SVGElement) node.classList.toggle("faded", rows.length > 0 && !chosen.has(node));
    }
  }
  function say(text, event) {
    tip.textContent = text;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  }

  // ---- the table
  let sorted = { column: null, down: true };
  function table() {
    const head = make("tr");
    data.headings.forEach((name, column) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => sortBy(column));
      head.append(make("th", { scope: "col", "aria-sort": "none" }, button));
    });
    const body = make("tbody");
    data.rows.forEach((row, number) => {
      const line = make("tr", { "data-row": number });
      row.cells.forEach((cell, column) => {
        const td = make("td", cell.best ? { class: "best" } : {});
        if (column === 0) td.append(swatch(row));
        td.append(cell.text);
        line.append(td);
      });
      belongs(line, [number], null);
      body.append(line);
    });
    byId("table").append(make("thead", {}, head), body);
    const budgets = ["all", ...new Set(data.rows.filter((row) => row.kept !== null).map((row) => row.keep))];
    byId("budget").append(...budgets.map((name) => make("option", { value: name }, name)));
    byId("budget").addEventListener("change", () => {
      const wanted = byId("budget").value;
      for (const line of body.children) {
        const row = data.rows[line.dataset.row];
        line.hidden = wanted !== "all" && row.keep !== wanted && row.kept !== null;
      }
    });
  }
  function sortBy(column) {
    const first = data.rows[0].cells[column].sort;
    sorted = { column, down: sorted.column === column ? !sorted.down : typeof first !== "string" };
    const body = byId("table").tBodies[0];
    const key = (line) => data.rows[line.dataset.row].cells[column].sort;
    const lines = [...body.children].sort((a, b) => compare(key(a), key(b)) || a.dataset.row - b.dataset.row);
    body.append(...lines);
    [...byId("table").tHead.rows[0].cells].forEach((th, number) => {
      th.setAttribute("aria-sort", number !== column ? "none" : sorted.down ? "descending" : "ascending");
    });
  }
  function compare(a, b) {
    if (a === null || b === null) return (a === null) - (b === null); // unknown ones last, whichever way
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return sorted.down ? -order : order;
  }

  // ---- plots, drawn already: what belongs to rows is marked as theirs
  function plot(place, name, text) {
    for (const [key, nodes] of marked) marked.set(key, nodes.filter((node) => !place.contains(node)));
    place.replaceChildren(byId(`figure-${name}`).content.cloneNode(true));
    for (const node of place.querySelectorAll("[data-row]")) {
      const numbers = node.dataset.row.split(" ").map(Number);
      belongs(node, numbers, numbers.map((number) => text(data.rows[number])).join("\n"));
    }
  }
  function pareto() {
    const cost = byId("cost").value;
    plot(byId("pareto"), cost, (row) => {
      const ends = row.interval ? row.interval.map(percent).join(", ") : "–";
      return `${row.label}\n${percent(row.accuracy)} % [${ends}]\n${data.costs[cost]}: ${row.costs[cost].toFixed(3)}`;
    });
  }
  function layers() {
    plot(byId("layers"), "layers", (row) => `${row.label}\n${row.tokens.map((n) => n.toFixed(0)).join(" ")}`);
  }

  // ---- overlap of kept sets
  const shades = [[0, 34, 78], [66, 78, 108], [124, 123, 120], [187, 175, 113], [254, 232, 56]];
  function shade(v) {
    const at = Math.min(Math.max(v, 0), 1) * (shades.length - 1), low = Math.min(Math.floor(at), shades.length - 2);
    return shades[low].map((c, i) => Math.round(c + (at - low) * (shades[low + 1][i] - c)));
  }
  function overlap() {
    const { labels, values } = data.overlap;
    const head = make("tr", {}, make("td"), ...labels.map((name) => make("th", { scope: "col" }, name)));
    const body = make("tbody");
    values.forEach((row, a) => {
      const line = make("tr", {}, make("th", { scope: "row" }, labels[a]));
      row.forEach((value, b) => {
        const cell = make("td", {}, value.toFixed(2));
        cell.style.background = `rgb(${shade(value).join(",")})`;
        cell.style.color = value > 0.55 ? "#000" : "#fff";
        cell.addEventListener("mousemove", (event) => say(`${labels[a]}\n${labels[b]}\n${value.toFixed(3)}`, event));
        cell.addEventListener("mouseleave", () => { tip.hidden = true; });
        line.append(cell);
      });
      body.append(line);
    });
    byId("overlap").append(make("thead", {}, head), body);
  }

  // ---- examples: what stays after each cut
  const pictures = data.images.map((source) => Object.assign(new Image(), { src: source }));
  function examples() {
    if (!data.examples.length) {
      byId("examples").replaceChildren(make("h2", {}, "What stays, cut by cut"),
        make("p", {}, "No run has examples on record whose tokens have known places."));
      return;
    }
    data.examples.forEach((example, number) => {
      byId("example").append(make("option", { value: number }, `${example.id}: ${example.question}`));
    });
    byId("example").addEventListener("change", () => { limit(); panels(); });
    byId("cut").addEventListener("input", panels);
    byId("scores").addEventListener("change", panels);
    limit();
    Promise.all(pictures.map((picture) => picture.decode())).then(panels);
  }
  const chosen = () => data.examples[byId("example").value];
  function limit() {
    const most = Math.max(...chosen().panels.map((panel) => panel.cuts.length));
    byId("cut").max = most;
    byId("cut").value = most;
  }
  function panels() {
    const example = chosen(), number = Number(byId("cut").value);
    byId("cut-label").textContent = number ? `after cut ${number} of ${byId("cut").max}` : "before any cut";
    byId("question").textContent = `${example.question}  (${example.answers.join(" / ")}; dense says: ${example.dense})`;
    byId("panels").replaceChildren(...example.panels.map((panel) => show(example, panel, number)));
  }
  function show(example, panel, number) {
    const cut = number ? panel.cuts[Math.min(number, panel.cuts.length) - 1] : null;
    const picture = pictures[example.image], canvas = make("canvas", { width: 392, height: 392 });
    canvas.height = Math.round((392 * picture.naturalHeight) / picture.naturalWidth);
    paint(canvas, picture, example.boxes, cut);
    const stay = cut ? [...cut.kept].filter((c) => c === "1").length : example.boxes.length;
    const where = cut ? `cut ${cut.where}` : "before any cut";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${panel.label}: ${stay} tokens, ${where}`);
    const answer = make("div", { class: panel.right ? "right" : "wrong" }, `${panel.right ? "✓" : "✗"} ${panel.answer || "(nothing)"}`);
    const name = make("strong", {}, panel.label);
    return make("figure", {}, canvas, ...bars(example, cut), make("figcaption", {}, name, answer, `${stay} tokens, ${where}`));
  }
  function bars(example, cut) {
    const count = Math.max(...example.frames) + 1;
    if (count < 2) return [];
    const stay = Array(count).fill(0), total = Array(count).fill(0);
    example.frames.forEach((frame, token) => {
      if (frame < 0) return;
      total[frame] += 1;
      stay[frame] += !cut || cut.kept[token] === "1" ? 1 : 0;
    });
    const canvas = make("canvas", { width: 392, height: 40 }), pen = canvas.getContext("2d"), wide = 392 / count;
    stay.forEach((n, frame) => {
      const high = (38 * n) / total[frame];
      pen.fillStyle = "#8883";
      pen.fillRect(frame * wide, 2, Math.max(wide - 2, 1), 38);
      pen.fillStyle = "#0072B2";
      pen.fillRect(frame * wide, 40 - high, Math.max(wide - 2, 1), high);
    });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `tokens of each frame: ${stay.map((n, frame) => `${n} of ${total[frame]}`).join(", ")}`);
    return [canvas];
  }
  function paint(canvas, picture, boxes, cut) {
    const pen = canvas.getContext("2d"), scores = byId("scores").checked;
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (!cut) return;
    for (let token = 0; token < boxes.length; token++) {
      if (!boxes[token]) continue;
      const kept = cut.kept[token] === "1", level = cut.heat.slice(2 * token, 2 * token + 2);
      if (scores) {
        pen.fillStyle = level === "--" ? "rgba(255,255,255,.88)" : `rgba(${shade(parseInt(level, 16) / 254).join(",")},.72)`;
      } else if (!kept) {
        pen.fillStyle = "rgba(255,255,255,.8)";
      }
      const [left, top, right, bottom] = boxes[token];
      const [x, y, wide, high] = [left * canvas.width, top * canvas.height, (right - left) * canvas.width, (bottom - top) * canvas.height];
      if (scores || !kept) pen.fillRect(x, y, wide + 0.5, high + 0.5);
      if (scores && kept) {
        pen.strokeStyle = "#fff";
        pen.strokeRect(x + 1, y + 1, wide - 2, high - 2);
      }
    }
  }

  for (const [key, name] of Object.entries(data.costs)) byId("cost").append(make("option", { value: key }, name));
  byId("cost").addEventListener("change", pareto);
  table(); pareto(); layers(); overlap(); examples();
})();
