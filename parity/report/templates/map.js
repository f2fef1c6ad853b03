// The map: sites against coordinates (or modules against their records), each cell as far over its floor as it is dark.
const RAMP = { light: ["#f7c948", "#ee9a3a", "#d9622b", "#b03030", "#7a1640", "#3d0f3f"], dark: ["#7a2a4a", "#a93a44", "#d2583a", "#ec8a3c", "#f7be55", "#fff1b8"] };
const overColour = (ratio, dark) => {  // one more colour a decade and a half, monotone in lightness, so that it reads without hue
  const ramp = RAMP[dark ? "dark" : "light"];
  return ramp[Math.min(ramp.length - 1, Math.max(0, Math.floor(Math.log10(ratio) / 1.2)))] || ramp[ramp.length - 1];
};
const cellColour = (data, i, dark = isDark()) => {
  const verdict = data.verdict(i), ratio = data.ratio(i), grey = dark ? "148,163,190" : "80,100,140";
  if (verdict === "diverged") return overColour(Number.isNaN(ratio) ? Infinity : Math.max(1, ratio), dark);
  if (Number.isNaN(ratio)) return `rgba(${grey},.06)`;
  return `rgba(${grey},${verdict === "excused" ? 0.6 : 0.12 + 0.3 * Math.min(1, ratio)})`;
};
const layOut = (data) => {  // row and column of each record, and the names of rows and columns
  const rank = (names) => { const found = new Map(); for (const name of names) if (!found.has(name)) found.set(name, found.size); return found; };
  const places = rank(data.every((i) => data.word("coords", i)));
  if (places.size >= 3) {
    const sites = rank(data.every((i) => data.word("site", i)));
    const names = [...places.keys()].map((text) => (text ? text.replace(/[^,=]*=/g, "").trim() : "–"));
    const axes = [...places.keys()].find(Boolean).replace(/=[^,]*/g, "");
    return { row: data.every((i) => sites.get(data.word("site", i))), column: data.every((i) => places.get(data.word("coords", i))), rows: [...sites.keys()], columns: names, label: axes };
  }
  for (const depth of [4, 3, 2, 1]) {
    const groups = rank(data.every((i) => data.module(i, depth)));
    const counts = new Array(groups.size).fill(0);
    const row = data.every((i) => groups.get(data.module(i, depth))), column = row.map((r) => counts[r]++);
    const wide = Math.max(...counts);
    if (groups.size <= 48 && wide <= 400) return { row, column, rows: [...groups.keys()], columns: Array.from({ length: wide }, (_, k) => String(k)), label: "records of the module, in order" };
  }
  const wide = Math.max(20, Math.ceil(Math.sqrt(data.count * 3)));  // too many of both: lines of text, as it were
  const lines = Array.from({ length: Math.ceil(data.count / wide) }, (_, k) => data.word("site", k * wide));
  return { row: data.every((i) => Math.floor(i / wide)), column: data.every((i) => i % wide), rows: lines, columns: Array.from({ length: wide }, (_, k) => String(k)), label: "records in the order of execution, line by line" };
};
const siteMap = (data, figure, open) => {
  const canvas = figure.querySelector("canvas"), line = figure.querySelector("[data-under]"), plan = layOut(data);
  const tall = plan.rows.length, wide = plan.columns.length;
  const severity = data.every((i) => (data.verdict(i) === "diverged" ? 1e15 : 0) + Math.min(1e12, data.ratio(i) || 0));
  const order = data.every((i) => i).sort((a, b) => severity[a] - severity[b]);
  let colours = [];
  const colour = () => { const dark = isDark(); colours = data.every((i) => cellColour(data, i, dark)); };
  const all = { top: 0, bottom: tall, left: 0, right: wide };
  let view = { ...all }, kept = null, cursor = data.first >= 0 ? data.first : order[order.length - 1], box = null, size = {};
  const measure = () => {
    const width = figure.clientWidth - 24, gutter = Math.min(width < 500 ? 110 : 260, 14 + 6.4 * Math.max(...plan.rows.map((name) => name.length)));
    const height = Math.min(Math.max(tall * 15, 60), 460) + 34;
    size = { width, height, gutter, plot: width - gutter - 2, high: height - 34 };
    const scale = devicePixelRatio || 1;
    canvas.width = width * scale; canvas.height = height * scale;
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  };
  const across = (c) => size.gutter + (c - view.left) / (view.right - view.left) * size.plot;
  const down = (r) => 6 + (r - view.top) / (view.bottom - view.top) * size.high;
  const rect = (i, least = 1) => {
    const x = across(plan.column[i]), y = down(plan.row[i]), w = size.plot / (view.right - view.left), h = size.high / (view.bottom - view.top);
    return [x, y, Math.max(least, w - (w > 5 ? 1 : 0)), Math.max(least, h - (h > 5 ? 1 : 0))];
  };
  const paint = () => {
    const pen = canvas.getContext("2d"), style = getComputedStyle(figure);
    const ink = style.color, soft = getComputedStyle(line).color;
    pen.clearRect(0, 0, size.width, size.height);
    pen.save(); pen.beginPath(); pen.rect(size.gutter, 5, size.plot, size.high + 2); pen.clip();
    for (const i of order) {
      if (plan.row[i] < view.top - 1 || plan.row[i] > view.bottom || plan.column[i] < view.left - 1 || plan.column[i] > view.right) continue;
      pen.globalAlpha = kept && !kept.has(i) ? 0.12 : 1;
      pen.fillStyle = colours[i]; pen.fillRect(...rect(i));
    }
    pen.globalAlpha = 1; pen.strokeStyle = ink;
    if (data.first >= 0) { const [x, y, w, h] = rect(data.first, 4); pen.lineWidth = 2; pen.strokeRect(x - 1.5, y - 1.5, w + 3, h + 3); }
    if (document.activeElement === canvas) { const [x, y, w, h] = rect(cursor, 6); pen.lineWidth = 1; pen.setLineDash([3, 2]); pen.strokeRect(x - 3.5, y - 3.5, w + 7, h + 7); pen.setLineDash([]); }
    if (box) { pen.lineWidth = 1; pen.strokeRect(...box); }
    pen.restore();
    pen.font = `11px ${style.getPropertyValue("--mono")}`; pen.textBaseline = "middle"; pen.textAlign = "right"; pen.fillStyle = soft;
    const most = Math.floor((size.gutter - 16) / 6.4), step = Math.max(1, Math.ceil(13 * (view.bottom - view.top) / size.high));
    const firstRow = data.first >= 0 ? plan.row[data.first] : -1, high = size.high / (view.bottom - view.top);
    for (let r = Math.ceil(view.top / step) * step; r < view.bottom; r += step) {
      if (firstRow >= 0 && r !== firstRow && Math.abs(down(r) - down(firstRow)) < 13) continue;
      if (r !== firstRow) label(pen, plan.rows[r], most, down(r) + high / 2);
    }
    if (firstRow >= view.top && firstRow < view.bottom) {
      pen.fillStyle = ink; pen.font = `600 11px ${style.getPropertyValue("--mono")}`;
      label(pen, plan.rows[firstRow], most - 2, down(firstRow) + high / 2, 12);
      const y = down(firstRow) + high / 2; pen.beginPath(); pen.moveTo(size.gutter - 4, y); pen.lineTo(size.gutter - 12, y - 4.5); pen.lineTo(size.gutter - 12, y + 4.5); pen.fill();
    }
    pen.fillStyle = soft; pen.textAlign = "center"; pen.font = `10.5px ${style.getPropertyValue("--mono")}`;
    const room = 7 * Math.max(...plan.columns.map((name) => name.length)) + 8, each = Math.max(1, Math.ceil(room * (view.right - view.left) / size.plot));
    for (let c = Math.ceil(view.left / each) * each; c < view.right; c += each) pen.fillText(plan.columns[c], across(c + 0.5), size.high + 15);
    pen.textAlign = "left"; pen.fillText(`${plan.label} →`, size.gutter, size.high + 28);
  };
  const label = (pen, name, most, y, shift = 0) => pen.fillText(name.length > most ? `…${name.slice(1 - most)}` : name, size.gutter - 8 - shift, y);
  const say = (i) => { line.textContent = i === null ? line.dataset.under : `${data.name(i)}: ${data.verdict(i)}, ${short(data.number("error", i))} of ${short(data.number("floor", i))}${data.ratio(i) > 0 ? ` (${short(data.ratio(i))}×)` : ""}`; };
  const at = (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    for (let k = order.length - 1; k >= 0; k--) {
      const [left, top, w, h] = rect(order[k], 3);
      if (x >= left && x <= left + w + 1 && y >= top && y <= top + h + 1 && x >= size.gutter) return order[k];
    }
    return null;
  };
  const look = (next) => {
    const fit = (low, high, least, most) => {
      const span = Math.min(most, Math.max(Math.min(least, most), high - low)), from = Math.min(Math.max(0, (low + high - span) / 2), most - span);
      return [from, from + span];
    };
    [view.top, view.bottom] = fit(next.top, next.bottom, 4, tall);
    [view.left, view.right] = fit(next.left, next.right, 4, wide);
    figure.querySelector("[data-zoom=fit]").disabled = view.bottom - view.top === tall && view.right - view.left === wide;
    figure.dataset.rows = `${Math.round(view.top)}-${Math.round(view.bottom)}`;
    paint();
  };
  const zoom = (factor, x = null, y = null) => {
    const [cx, cy] = x === null ? [plan.column[cursor] + 0.5, plan.row[cursor] + 0.5] : [x, y];
    look({ top: cy - (cy - view.top) * factor, bottom: cy + (view.bottom - cy) * factor, left: cx - (cx - view.left) * factor, right: cx + (view.right - cx) * factor });
  };
  const cellAt = (event) => [view.left + (event.offsetX - size.gutter) / size.plot * (view.right - view.left), view.top + (event.offsetY - 6) / size.high * (view.bottom - view.top)];
  figure.querySelector("[data-zoom=in]").addEventListener("click", () => zoom(0.5));
  figure.querySelector("[data-zoom=out]").addEventListener("click", () => zoom(2));
  figure.querySelector("[data-zoom=fit]").addEventListener("click", () => look({ ...all }));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;  // the page scrolls
    event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, ...cellAt(event));
  }, { passive: false });
  let start = null;
  canvas.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") start = [event.offsetX, event.offsetY, ...cellAt(event)]; });
  canvas.addEventListener("pointermove", (event) => {
    if (start && Math.hypot(event.offsetX - start[0], event.offsetY - start[1]) > 8) { box = [start[0], start[1], event.offsetX - start[0], event.offsetY - start[1]]; paint(); }
    const i = at(event); canvas.style.cursor = i === null ? "crosshair" : "pointer"; say(i);
  });
  canvas.addEventListener("pointerleave", () => say(null));
  addEventListener("pointerup", (event) => {
    if (!start) return;
    const from = start, drawn = box; start = box = null;
    if (!drawn) return;
    const [c, r] = event.target === canvas ? cellAt(event) : [from[2], from[3]];
    look({ top: Math.min(from[3], r), bottom: Math.max(from[3], r), left: Math.min(from[2], c), right: Math.max(from[2], c) });
    canvas.dataset.dragged = "1"; setTimeout(() => delete canvas.dataset.dragged, 50);
  });
  canvas.addEventListener("click", (event) => { const i = at(event); if (i !== null && !canvas.dataset.dragged) { cursor = i; open(i); } });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Enter") return open(cursor);
    if ("+=".includes(event.key)) return zoom(0.5);
    if (event.key === "-") return zoom(2);
    if (event.key === "0") return look({ ...all });
    if (!move) return;
    event.preventDefault();
    let best = null, far = Infinity;  // the nearest cell that way
    for (let i = 0; i < data.count; i++) {
      const dr = plan.row[i] - plan.row[cursor], dc = plan.column[i] - plan.column[cursor];
      const ahead = dr * move[0] + dc * move[1], aside = Math.abs(dr * move[1]) + Math.abs(dc * move[0]);
      if (ahead > 0 && ahead + 20 * aside < far) { far = ahead + 20 * aside; best = i; }
    }
    if (best !== null) cursor = best;
    const [r, c] = [plan.row[cursor], plan.column[cursor]];
    if (r < view.top || r >= view.bottom || c < view.left || c >= view.right) {
      const [h, w] = [(view.bottom - view.top) / 2, (view.right - view.left) / 2];
      look({ top: r - h, bottom: r + h, left: c - w, right: c + w });
    }
    say(cursor); paint();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => { say(name === "focus" ? cursor : null); paint(); });
  document.addEventListener("colours", () => { colour(); paint(); });
  const ramp = () => { figure.querySelector("[data-ramp]").style.background = `linear-gradient(to right, ${RAMP[isDark() ? "dark" : "light"].join(", ")})`; };
  document.addEventListener("colours", ramp); ramp();
  new ResizeObserver(() => { if (figure.clientWidth - 24 !== size.width) { measure(); look(view); } }).observe(figure);
  measure(); colour(); look(view); say(null);
  return { filter: (rows) => { kept = rows.length === data.count ? null : new Set(rows); paint(); }, cursor: (i) => { cursor = i; paint(); } };
};
