// One record: its numbers, how its site fares elsewhere, and where they were kept both sides' values.
const plot = (lines, { width = 480, height = 96, labels = [], log = false, name = "" } = {}) => {
  // lines: [{points: [number or NaN], css}], drawn over equal steps
  const figure = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": name });
  const known = lines.flatMap((line) => line.points).filter((v) => Number.isFinite(v) && (!log || v > 0));
  if (!known.length) return figure;
  const scale = (v) => (log ? Math.log10(v) : v), low = log ? Math.floor(scale(Math.min(...known))) : 0;
  const high = Math.max(log ? Math.ceil(scale(Math.max(...known))) : scale(Math.max(...known)), low + (log ? 1 : 1e-30)), top = 8, bottom = height - 18, left = 46;
  const place = (v) => (v === Infinity ? top : log && !(v > 0) ? bottom : bottom - (scale(v) - low) / (high - low) * (bottom - top));
  const count = Math.max(...lines.map((line) => line.points.length)), step = (width - left - 8) / count;
  for (const [v, text] of log ? [[10 ** low, `1e${low}`], [10 ** high, `1e${high}`]] : [[0, "0"], [high, short(high)]]) {
    figure.append(draw("line", { class: "grid", x1: left, x2: width - 8, y1: place(v), y2: place(v) }), draw("text", { class: "tick end", x: left - 6, y: place(v) + 3.5 }, text));
  }
  for (const { points, css } of lines) {
    const path = points.flatMap((v, k) => (Number.isNaN(v) ? [] : [`${(left + k * step).toFixed(1)},${place(v).toFixed(1)}`, `${(left + (k + 1) * step).toFixed(1)},${place(v).toFixed(1)}`]));
    if (path.length) figure.append(draw("polyline", { class: css, points: path.join(" ") }));
  }
  labels.forEach(([k, text]) => figure.append(draw("text", { class: "tick mid", x: left + (k + 0.5) * step, y: height - 5 }, text)));
  return figure;
};
const titled = (title, ...nodes) => { const figure = make("figure"); figure.append(make("figcaption", title), ...nodes); return figure; };
const slices = (slice) => {
  const { reference, port, difference } = slice, finite = [...reference, ...port].flat().map(value).filter(Number.isFinite);
  const reach = Math.max(...finite.map(Math.abs), 1e-30), worst = Math.max(...difference.flat().map(value).filter(Number.isFinite), 1e-30);
  const mix = (from, to, t) => from.map((v, k) => Math.round(v + (to[k] - v) * t));
  const paper = isDark() ? [32, 36, 42] : [246, 246, 243];
  const both = (v) => (!Number.isFinite(v) ? [255, 0, 200] : v < 0 ? mix(paper, [43, 108, 196], Math.min(1, -v / reach) ** 0.7) : mix(paper, [217, 119, 6], Math.min(1, v / reach) ** 0.7));
  const hot = (v) => (!Number.isFinite(v) ? [255, 0, 200] : mix(paper, isDark() ? [255, 226, 150] : [110, 16, 56], Math.min(1, v / worst) ** 0.7));
  const row = make("div", "", "slices"), note = make("p", "", "muted small mono");
  const rest = `${slice.name}, rows from ${slice.origin[0]}, columns from ${slice.origin[1]}`;
  note.textContent = rest;
  for (const [name, table, colour] of [["reference", reference, both], ["port", port, both], [`|port − reference|, up to ${short(worst)}`, difference, hot]]) {
    const canvas = make("canvas"); canvas.width = table[0].length; canvas.height = table.length;
    const pen = canvas.getContext("2d"), image = pen.createImageData(canvas.width, canvas.height);
    table.flat().forEach((v, k) => image.data.set([...colour(value(v)), 255], 4 * k));
    pen.putImageData(image, 0, 0);
    canvas.style.aspectRatio = `${table[0].length} / ${Math.max(table.length, table[0].length / 6)}`;
    canvas.addEventListener("pointermove", (event) => {
      const c = Math.floor(event.offsetX / canvas.clientWidth * canvas.width), r = Math.floor(event.offsetY / canvas.clientHeight * canvas.height);
      if (table[r]?.[c] !== undefined) note.textContent = `row ${r + slice.origin[0]}, column ${c + slice.origin[1]}: reference ${short(value(reference[r][c]))}, port ${short(value(port[r][c]))}`;
    });
    canvas.addEventListener("pointerleave", () => { note.textContent = rest; });
    row.append(titled(name, canvas));
  }
  return [row, note];
};
const valuesOf = (view) => {
  const out = make("div", "", "values-view"), [low, high] = view.range.map(value);
  const [ours, theirs] = view.counts.map((side) => side.map((count) => Math.log10(1 + count)));
  const ends = [[0, short(low)], [ours.length - 1, short(high)]];
  const spread = titled("how the values are spread (log count)", plot([{ points: ours, css: "floor" }, { points: theirs, css: "error" }], { labels: ends, name: "histograms of both sides" }));
  if (view.nonfinite.some(Boolean)) spread.append(make("p", `not finite: ${view.nonfinite[0]} in the reference, ${view.nonfinite[1]} in the port`, "alarm small"));
  const axes = view.axes.map(([axis, step, errors]) => {
    const last = Math.min(view.shape[axis], errors.length * step) - 1, labels = [[0, "0"], [errors.length - 1, String(last)]];
    return titled(`error along axis ${axis} of [${view.shape.join(", ")}]`, plot([{ points: errors.map(value), css: "error" }], { labels, height: 80, name: `error along axis ${axis}` }));
  });
  const grid = make("div", "", "pairs"); grid.append(spread, ...axes);
  out.append(...slices(view.slice), grid);
  if (view.worst.length) {
    const table = make("table", "", "plain"), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const text of ["worst elements", "reference", "port", "difference"]) head.append(make("th", text, text === "worst elements" ? "" : "r"));
    for (const [index, a, b] of view.worst) {
      const line = body.insertRow(), apart = value(b) - value(a);
      line.append(make("td", `[${index.join(", ")}]`, "num"), ...[a, b].map((v) => make("td", String(value(v)), "r num")), make("td", short(apart), "r num alarm"));
    }
    out.append(table);
  }
  return out;
};
const value = (v) => (v === null ? NaN : v === "inf" ? Infinity : v === "-inf" ? -Infinity : v);
const sitePanel = (data, values, step) => {
  const panel = document.getElementById("panel"), content = panel.querySelector("[data-content]");
  let shown = -1, back = null;
  const facts = (i) => [
    ["error", `${data.columns.flags[i] & 4 ? "≈ " : ""}${short(data.number("error", i))}`], ["floor", short(data.number("floor", i))], ["over its floor", data.ratio(i) > 0 ? `${short(data.ratio(i))}×` : "–"],
    ["max abs", short(data.number("max_abs", i))], ["SQNR", Number.isNaN(data.number("sqnr", i)) ? "–" : `${short(data.number("sqnr", i))} dB`], ["alone (isolated)", short(data.number("isolated", i))],
    ["reference's own error", short(data.number("precise", i))], ["elements over tolerance", short(data.number("over", i))], ["not finite", data.word("nonfinite", i) || "none"],
    ["shape", data.word("shape", i) || "–"], ["dtype", data.word("dtype", i) || "–"], ["aligned by", data.word("how", i)], ["in the port", data.word("port", i) || "the same name"],
  ];
  const elsewhere = (i) => {  // the same site at its other coordinates
    const same = data.ofSite(i);
    if (same.length < 2) return [];
    const [errors, floors] = ["error", "floor"].map((name) => same.map((k) => data.number(name, k))), here = same.indexOf(i);
    const chart = plot([{ points: floors, css: "floor" }, { points: errors, css: "error" }, { points: same.map((k) => (k === i ? data.number("error", k) : NaN)), css: "over" }],
      { log: true, labels: [[here, data.word("coords", i)]], name: "error of this site everywhere" });
    return [titled(`this site at its ${same.length} coordinates: error, and its floor (dashed)`, chart)];
  };
  const show = (i) => {
    if (shown < 0) back = document.activeElement;
    shown = i;
    const verdict = data.verdict(i), head = make("p", "", "chips");
    head.append(make("span", verdict, `pill ${verdict === "diverged" ? "diverged" : verdict === "excused" ? "incomplete" : "match"}`));
    for (const text of [...data.word("coords", i).split(", "), data.word("kind", i)].filter(Boolean)) head.append(make("span", text, "chip"));
    const list = make("dl", "", "facts");
    for (const [name, text] of facts(i)) { const pair = make("div"); pair.append(make("dt", name), make("dd", text)); list.append(pair); }
    const copied = make("button", "copy", "quiet-button"); copied.type = "button"; copyButton(copied, () => data.name(i));
    const title = make("h2", data.word("site", i), "mono"); title.append(" ", copied);
    const said = data.word("said", i), view = values?.[data.name(i)];
    content.replaceChildren(title, head, ...(said ? [make("p", said)] : []), list, ...elsewhere(i),
      view ? valuesOf(view) : make("p", values ? `Values are kept of ${Object.keys(values).length} records, not of this one: the first of each diverging site, and those nearest to their floors.` : "This page has no values: it was made without the traces.", "muted small"));
    panel.hidden = false; panel.scrollTop = 0; panel.focus({ preventScroll: true });
    document.body.classList.add("with-panel");
  };
  const close = (clear = true) => {
    if (shown < 0) return;
    shown = -1; panel.hidden = true; document.body.classList.remove("with-panel");
    if (clear) history.replaceState(null, "", location.pathname + location.search);
    back?.focus?.({ preventScroll: true });
  };
  panel.querySelector("[data-close]").addEventListener("click", () => close());
  panel.querySelector("[data-previous]").addEventListener("click", () => step(shown, -1));
  panel.querySelector("[data-next]").addEventListener("click", () => step(shown, 1));
  document.addEventListener("keydown", (event) => {
    if (shown < 0 || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "Escape") close();
    if (panel.contains(event.target) && event.key === "ArrowLeft") step(shown, -1);
    if (panel.contains(event.target) && event.key === "ArrowRight") step(shown, 1);
  });
  document.addEventListener("colours", () => { if (shown >= 0) show(shown); });
  return { show, close };
};
