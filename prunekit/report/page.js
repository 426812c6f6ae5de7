"use strict";
// Everything that comes from runs is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const tip = byId("tip");

  function make(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }
  function draw(tag, attributes = {}, ...children) {
    return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  }
  function fill(node, attributes, children) {
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
  function belongs(node, row, text) {
    if (!marked.has(row)) marked.set(row, []);
    marked.get(row).push(node);
    node.addEventListener("mouseenter", (event) => { mark(row); if (text) say(text, event); });
    node.addEventListener("mousemove", (event) => { if (text) say(text, event); });
    node.addEventListener("mouseleave", () => { mark(null); tip.hidden = true; });
  }
  function mark(row) {
    for (const [key, nodes] of marked) {
      for (const node of nodes) {
        node.classList.toggle("on", key === row);
        if (node instanceof SVGElement) node.classList.toggle("faded", row !== null && key !== row);
      }
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
      belongs(line, number, null);
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

  // ---- plots
  const box = { left: 56, right: 16, top: 14, bottom: 44 };
  function frame(svg, xs, ys, labels) {
    svg.replaceChildren();
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const x = (v) => box.left + ((v - xs[0]) / (xs[1] - xs[0])) * (width - box.left - box.right);
    const y = (v) => height - box.bottom - ((v - ys[0]) / (ys[1] - ys[0])) * (height - box.top - box.bottom);
    for (const v of ticks(...ys)) {
      svg.append(draw("line", { class: "grid", x1: box.left, x2: width - box.right, y1: y(v), y2: y(v) }));
      svg.append(draw("text", { x: box.left - 7, y: y(v) + 4, "text-anchor": "end" }, round(v)));
    }
    for (const v of ticks(...xs)) {
      svg.append(draw("line", { class: "grid", x1: x(v), x2: x(v), y1: box.top, y2: height - box.bottom }));
      svg.append(draw("text", { x: x(v), y: height - box.bottom + 16, "text-anchor": "middle" }, round(v)));
    }
    const corner = `M${box.left} ${box.top}V${height - box.bottom}H${width - box.right}`;
    svg.append(draw("path", { class: "axis", d: corner }));
    const middle = (box.left + width - box.right) / 2;
    svg.append(draw("text", { x: middle, y: height - 6, "text-anchor": "middle" }, labels[0]));
    const up = { x: 0, y: 0, "text-anchor": "middle", transform: `translate(13 ${(height - box.bottom) / 2}) rotate(-90)` };
    svg.append(draw("text", up, labels[1]));
    return [x, y, width];
  }
  function ticks(low, high) {
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) found.push(v);
    return found;
  }
  const round = (v) => String(Number(v.toPrecision(6)));
  function range(values, pad) {
    const low = Math.min(...values), high = Math.max(...values), more = (high - low || 1) * pad;
    return [low - more, high + more];
  }

  function pareto() {
    const cost = byId("cost").value, svg = byId("pareto");
    forget(svg);
    const shown = data.rows.map((row, number) => ({ row, number })).filter(({ row }) => row.costs[cost] !== null);
    const xs = range(shown.map(({ row }) => row.costs[cost]), 0.06);
    const ys = range(shown.flatMap(({ row }) => row.interval.map((v) => 100 * v)), 0.05);
    const [x, y, width] = frame(svg, xs, ys, [data.costs[cost], "accuracy, %"]);
    const dense = data.rows.find((row) => row.kept === null);
    const level = y(100 * dense.accuracy);
    svg.append(draw("line", { x1: box.left, x2: width - box.right, y1: level, y2: level, stroke: "#595959", "stroke-dasharray": "5 4" }));
    const methods = new Map();
    for (const point of shown) {
      if (!methods.has(point.row.method)) methods.set(point.row.method, []);
      methods.get(point.row.method).push(point);
    }
    for (const points of methods.values()) {
      points.sort((a, b) => a.row.costs[cost] - b.row.costs[cost]);
      const path = points.map(({ row }, i) => `${i ? "L" : "M"}${x(row.costs[cost])} ${y(100 * row.accuracy)}`).join("");
      svg.append(draw("path", { d: path, stroke: points[0].row.colour, fill: "none", "stroke-width": 1.4 }));
    }
    for (const { row, number } of shown) {
      const at = [x(row.costs[cost]), y(100 * row.accuracy)], [low, high] = row.interval.map((v) => y(100 * v));
      const group = draw("g", { "data-row": number },
        draw("line", { x1: at[0], x2: at[0], y1: low, y2: high, stroke: row.colour }),
        draw("circle", { cx: at[0], cy: at[1], r: 5, fill: row.hollow ? "#fff" : row.colour, stroke: row.hollow ? row.colour : "#fff" }));
      const [a, b] = row.interval.map(percent);
      belongs(group, number, `${row.label}\n${percent(row.accuracy)} % [${a}, ${b}]\n${data.costs[cost]}: ${row.costs[cost].toFixed(3)}`);
      svg.append(group);
    }
  }
  function forget(svg) {
    for (const [key, nodes] of marked) marked.set(key, nodes.filter((node) => !svg.contains(node)));
  }
  function legend() {
    data.rows.forEach((row, number) => {
      const line = make("div", {}, swatch(row), row.label);
      belongs(line, number, null);
      byId("legend").append(line);
    });
  }
  function layers() {
    const svg = byId("layers"), depth = data.rows[0].tokens.length;
    const most = Math.max(...data.rows.flatMap((row) => row.tokens));
    const [x, y] = frame(svg, [0, depth], [0, most * 1.05], ["decoder layer", "tokens (mean)"]);
    data.rows.forEach((row, number) => {
      const path = row.tokens.map((n, layer) => `${layer ? "L" : "M"}${x(layer)} ${y(n)}H${x(layer + 1)}`).join("");
      const look = { d: path, stroke: row.colour, fill: "none", "stroke-width": 2.2 };
      if (row.kept === null) look["stroke-dasharray"] = "5 4";
      const line = draw("path", look);
      belongs(line, number, `${row.label}\n${row.tokens.map((n) => n.toFixed(0)).join(" ")}`);
      svg.append(line);
    });
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
    paint(canvas, picture, example.grid, cut);
    const stay = cut ? [...cut.kept].filter((c) => c === "1").length : example.grid[0] * example.grid[1];
    const where = cut ? `cut ${cut.where}` : "before any cut";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${panel.label}: ${stay} tokens, ${where}`);
    const answer = make("div", { class: panel.right ? "right" : "wrong" }, `${panel.right ? "✓" : "✗"} ${panel.answer || "(nothing)"}`);
    const name = make("strong", {}, panel.label);
    return make("figure", {}, canvas, make("figcaption", {}, name, answer, `${stay} tokens, ${where}`));
  }
  function paint(canvas, picture, [rows, columns], cut) {
    const pen = canvas.getContext("2d"), scores = byId("scores").checked;
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (!cut) return;
    const wide = canvas.width / columns, high = canvas.height / rows;
    for (let token = 0; token < rows * columns; token++) {
      const kept = cut.kept[token] === "1", level = cut.heat.slice(2 * token, 2 * token + 2);
      if (scores) {
        pen.fillStyle = level === "--" ? "rgba(255,255,255,.88)" : `rgba(${shade(parseInt(level, 16) / 254).join(",")},.72)`;
      } else if (!kept) {
        pen.fillStyle = "rgba(255,255,255,.8)";
      }
      const [x, y] = [(token % columns) * wide, Math.floor(token / columns) * high];
      if (scores || !kept) pen.fillRect(x, y, wide + 0.5, high + 0.5);
      if (scores && kept) {
        pen.strokeStyle = "#fff";
        pen.strokeRect(x + 1, y + 1, wide - 2, high - 2);
      }
    }
  }

  for (const [key, name] of Object.entries(data.costs)) byId("cost").append(make("option", { value: key }, name));
  byId("cost").addEventListener("change", pareto);
  table(); legend(); pareto(); layers(); overlap(); examples();
})();
