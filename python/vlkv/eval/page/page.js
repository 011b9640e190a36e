"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { layers, heads, tokens } = data;
  const at = (id) => document.getElementById(id);
  const state = { layer: -1, head: -1, view: "kept" };

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const kept = bytes(data.kept);
  const score = new Float32Array(bytes(data.scores).buffer);
  const index = (layer, head, token) => (layer * heads + head) * tokens + token;
  const isKept = (layer, head, token) => {
    const i = index(layer, head, token);
    return (kept[i >> 3] >> (7 - (i & 7))) & 1;
  };
  const chosen = () => {
    const some = [];
    for (let l = 0; l < layers; l++) {
      if (state.layer >= 0 && l !== state.layer) continue;
      for (let h = 0; h < heads; h++) if (state.head < 0 || h === state.head) some.push([l, h]);
    }
    return some;
  };
  const shareOf = (token, some) => some.reduce((sum, [l, h]) => sum + isKept(l, h, token), 0) / some.length;
  const scoreOf = (token, some) => some.reduce((sum, [l, h]) => sum + score[index(l, h, token)], 0);
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const percent = (value, digits = 1) => (100 * value).toFixed(digits) + "%";
  const figure = (value) => (value === 0 ? "0" : value >= 0.001 ? value.toPrecision(3) : value.toExponential(1));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  at("over").textContent = `${data.policy} at ${percent(data.budget, 4).replace(/\.?0+%/, "%")} of the cache`;
  at("question").textContent = data.question;
  document.title = `${data.question} · vlkv inspect`;
  at("small-title").textContent = `${data.policy}, ${percent(data.budget, 4).replace(/\.?0+%/, "%")}`;
  for (const [kind, result] of [["full", data.full], ["small", data.small]]) {
    const node = at(`answer-${kind}`);
    node.textContent = result.text.trim() || "(nothing)";
    node.classList.toggle("long", result.text.length > 60);
    at(`fine-${kind}`).textContent = `${result.kept.toLocaleString("en")} of ${(tokens * layers).toLocaleString("en")} tokens, ${result.size}`;
  }

  const panes = data.panes.map(({ picture, patches, rows, columns, name, down, across }, number) => {
    const box = make("div", "picture"), figure = make("figure"), caption = make("figcaption", "fine");
    const image = make("img");
    image.src = picture;
    image.alt = `${name}, as the model sees it`;
    const canvas = make("canvas");
    box.append(image, canvas);
    figure.append(box, caption);
    figure.classList.toggle("tiled", down.length * across.length > 1);
    at("pictures").append(figure);
    image.addEventListener("load", draw);
    const point = (event) => {
      const area = canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - area.left) / area.width) * columns);
      const row = Math.floor(((event.clientY - area.top) / area.height) * rows);
      if (row < 0 || column < 0 || row >= rows || column >= columns) return;
      probe(number, row, column, event);
    };
    box.addEventListener("pointermove", point);
    box.addEventListener("pointerdown", point);
    box.addEventListener("pointerleave", () => { at("tip").hidden = true; hovered = null; draw(); });
    return { box, canvas, rows, columns, places: patches, name, caption, down, across };
  });
  at("pictures").classList.toggle("many", panes.length > 4);
  if (!panes.length) at("stage").querySelector(".pictures").remove();
  const apart = data.apart.map(({ name, places }) => {
    const node = make("p", "fine");
    at("apart").append(node);
    return { node, name, places };
  });
  let hovered = null;

  function probe(number, row, column, event) {
    const token = panes[number].places[row * panes[number].columns + column];
    const some = chosen();
    const keeps = some.filter(([l, h]) => isKept(l, h, token)).length;
    const lines = [
      `Row ${row}, column ${column}, token ${token}`,
      `Score ${figure(scoreOf(token, some))}`,
      some.length === 1 ? (keeps ? "Kept" : "Evicted") : `Kept by ${keeps} of ${some.length} heads`,
    ];
    at("probe").replaceChildren(make("b", "", lines[0]), make("br"), `${lines[1]} · ${lines[2]}`);
    const tip = at("tip");
    tip.replaceChildren(...lines.flatMap((line, i) => (i ? [make("br"), line] : [line])));
    tip.hidden = event.pointerType === "touch";
    tip.style.left = `${Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
    hovered = { number, row, column };
    draw();
  }

  function draw() {
    const some = chosen();
    const hot = colour("--hot-rgb"), veil = colour("--veil-rgb");
    panes.forEach(({ canvas, box, rows, columns, places, down, across }, number) => {
      const ratio = devicePixelRatio || 1;
      const width = Math.round(box.clientWidth * ratio), height = Math.round(box.clientHeight * ratio);
      if (!width || !height) return;
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, width, height);
      const values = places.map((token) => (state.view === "kept" ? shareOf(token, some) : scoreOf(token, some)));
      const most = state.view === "kept" ? 1 : Math.max(...values, 1e-30);
      values.forEach((value, i) => {
        const row = Math.floor(i / columns), column = i % columns;
        const x = Math.round((column * width) / columns), y = Math.round((row * height) / rows);
        const right = Math.round(((column + 1) * width) / columns), below = Math.round(((row + 1) * height) / rows);
        const strength = state.view === "kept" ? value : Math.sqrt(value / most);
        pen.fillStyle = `rgba(${veil}, ${0.72 * (1 - strength)})`;
        pen.fillRect(x, y, right - x, below - y);
        if (value > 0) {
          pen.fillStyle = `rgba(${hot}, ${0.08 + 0.5 * strength})`;
          pen.fillRect(x, y, right - x, below - y);
        }
        if (hovered && hovered.number === number && hovered.row === row && hovered.column === column) {
          pen.strokeStyle = colour("--ink");
          pen.lineWidth = 2 * ratio;
          pen.strokeRect(x + ratio, y + ratio, right - x - 2 * ratio, below - y - 2 * ratio);
        }
      });
      tiles(pen, width, height, ratio, { rows, columns, places, down, across }, some);
      box.dataset.most = String(most);
    });
  }

  function tiles(pen, width, height, ratio, { rows, columns, places, down, across }, some) {
    if (down.length === 1 && across.length === 1) return;
    pen.strokeStyle = colour("--ink");
    pen.lineWidth = ratio;
    pen.font = `${11 * ratio}px sans-serif`;
    down.forEach((top, r) => across.forEach((left, c) => {
      const below = down[r + 1] ?? rows, right = across[c + 1] ?? columns;
      const x = Math.round((left * width) / columns), y = Math.round((top * height) / rows);
      const wide = Math.round((right * width) / columns) - x, high = Math.round((below * height) / rows) - y;
      pen.strokeRect(x, y, wide, high);
      let sum = 0;
      for (let i = top; i < below; i++) for (let j = left; j < right; j++) sum += shareOf(places[i * columns + j], some);
      const text = `${Math.round(sum)} of ${(below - top) * (right - left)}`;
      const long = pen.measureText(text).width + 8 * ratio;
      if (long > wide || high < 18 * ratio) return;
      pen.fillStyle = `rgba(${colour("--veil-rgb")}, 0.85)`;
      pen.fillRect(x + ratio, y + ratio, long, 16 * ratio);
      pen.fillStyle = colour("--ink");
      pen.fillText(text, x + 4 * ratio, y + 12 * ratio);
    }));
  }

  function chips(parent, entries, current, choose) {
    parent.replaceChildren(...entries.map(([value, name]) => {
      const button = make("button", "", name);
      button.type = "button";
      button.setAttribute("aria-pressed", String(value === current()));
      button.addEventListener("click", () => choose(value));
      button.dataset.value = String(value);
      return button;
    }));
  }
  const press = (parent, value) => {
    for (const button of parent.querySelectorAll("[data-value]")) {
      button.setAttribute("aria-pressed", String(button.dataset.value === String(value)));
    }
  };
  const choose = (change) => { Object.assign(state, change); show(); };

  const slider = at("layer");
  slider.max = String(layers - 1);
  slider.addEventListener("input", () => choose({ layer: Number(slider.value) }));
  const numbered = (count) => Array.from({ length: count }, (_, i) => [i, String(i)]);
  chips(at("heads"), [[-1, "All"], ...numbered(heads)], () => state.head, (head) => choose({ head }));
  const views = data.observed ? [["kept", "Kept"], ["score", "Score"]] : [["kept", "Kept"]];
  chips(at("views"), views, () => state.view, (view) => choose({ view }));

  const most = Math.max(...data.counts, 1);
  const track = (share, text, grey) => {
    const cell = make("span", "track"), rail = make("span", grey ? "rail grey" : "rail"), fill = make("i");
    fill.style.width = `${100 * share}%`;
    rail.append(fill);
    cell.append(rail, make("span", "", text));
    return cell;
  };
  const title = make("div", "bar head");
  title.append(make("span", "", ""), make("span", "", "Tokens kept"), make("span", "", "Sparsity"));
  at("bars").append(title, ...data.counts.map((count, layer) => {
    const bar = make("button", "bar"), name = make("span", "");
    name.append(make("span", "word", "Layer "), String(layer));
    bar.type = "button";
    bar.dataset.value = String(layer);
    bar.append(name, track(count / most, count.toLocaleString("en")), track(data.sparsity[layer], data.observed ? percent(data.sparsity[layer]) : "none", true));
    bar.addEventListener("click", () => choose({ layer: state.layer === layer ? -1 : layer }));
    return bar;
  }));
  at("layers-lead").textContent = data.observed
    ? `Each layer keeps its share of ${tokens.toLocaleString("en")} prompt tokens; sparsity is the share of attention weights that count as zero.`
    : `Each layer keeps its share of ${tokens.toLocaleString("en")} prompt tokens; this policy observes no attention.`;

  const words = [];
  data.words.forEach((word, token) => {
    if (word !== null) {
      const node = make("span", "token", word.replace(/\n/g, "↵").trim() || "␣");
      at("tokens").append(node, " ");
      words.push({ node, token });
    } else if (token === 0 || data.words[token - 1] !== null) {
      let end = token;
      while (end < tokens && data.words[end] === null) end++;
      const node = make("span", "token picture-token");
      at("tokens").append(node, " ");
      words.push({ node, token, end });
    }
  });
  at("footer").textContent = data.footer;

  function show() {
    const some = chosen();
    slider.value = String(state.layer);
    at("layer-name").textContent = state.layer < 0 ? "all" : String(state.layer);
    slider.setAttribute("aria-valuetext", state.layer < 0 ? "all layers" : `layer ${state.layer}`);
    press(at("heads"), state.head);
    press(at("views"), state.view);
    press(at("bars"), state.layer);
    const total = state.layer < 0 ? data.counts.reduce((a, b) => a + b, 0) : data.counts[state.layer];
    const whole = state.layer < 0 ? tokens * layers : tokens;
    const where = state.layer < 0 ? "All layers keep" : `Layer ${state.layer} keeps`;
    at("now").replaceChildren(`${where} `, make("em", "", percent(total / whole)), `: ${total.toLocaleString("en")} of ${whole.toLocaleString("en")} tokens a head`);
    at("scale-low").textContent = state.view === "kept" ? "no head" : "0";
    const strongest = Math.max(0, ...panes.flatMap(({ places }) => places.map((token) => scoreOf(token, some))));
    at("scale-high").textContent = state.view === "kept" ? "every head" : figure(strongest);
    at("probe").textContent = panes.length ? "Point at a patch to see its score." : "";
    const said = (places) => {
      const sum = places.reduce((all, token) => all + shareOf(token, some), 0);
      return `${Math.round(sum).toLocaleString("en")} of ${places.length.toLocaleString("en")} kept`;
    };
    for (const { caption, name, places } of panes) caption.textContent = `${name}: ${said(places)}`;
    for (const { node, name, places } of apart) node.textContent = `${name}: ${said(places)}`;
    for (const { node, token, end } of words) {
      if (end !== undefined) {
        let sum = 0;
        for (let t = token; t < end; t++) sum += shareOf(t, some);
        node.textContent = `picture: ${Math.round(sum).toLocaleString("en")} of ${(end - token).toLocaleString("en")} patches`;
        continue;
      }
      const share = shareOf(token, some);
      node.classList.toggle("gone", share === 0);
      node.style.backgroundColor = `rgba(${colour("--hot-rgb")}, ${0.42 * share})`;
      node.title = `Token ${token}, kept by ${percent(share, 0)} of the heads, score ${figure(scoreOf(token, some))}`;
    }
    draw();
  }
  new ResizeObserver(draw).observe(at("stage"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();
  document.documentElement.dataset.ready = "true";
})();
