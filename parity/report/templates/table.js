// The table of sites: only the rows in sight are in the document, so that 20 000 scroll as smoothly as 20.
const siteTable = (data, scroll, open) => {
  const table = scroll.querySelector("table"), body = table.tBodies[0], narrow = matchMedia("(max-width: 760px)");
  const heads = [
    { name: "site", sort: (i) => data.word("site", i), text: (i) => data.word("site", i), css: "site" },
    { name: "where", sort: (i) => data.word("coords", i), text: (i) => data.word("coords", i), css: "quiet extra" },
    { name: "kind", sort: (i) => data.word("kind", i), text: (i) => data.word("kind", i), css: "quiet extra" },
    { name: "error", sort: (i) => data.number("error", i), text: (i) => (data.columns.flags[i] & 2 ? "bitwise" : (data.columns.flags[i] & 4 ? "≈ " : "") + short(data.number("error", i))), css: "r" },
    { name: "floor", sort: (i) => data.number("floor", i), text: (i) => short(data.number("floor", i)), css: "r quiet extra" },
    { name: "× floor", sort: data.ratio, text: (i) => short(data.ratio(i)), css: "r" },
    { name: "max abs", sort: (i) => data.number("max_abs", i), text: (i) => short(data.number("max_abs", i)), css: "r quiet extra" },
    { name: "isolated", sort: (i) => data.number("isolated", i), text: (i) => short(data.number("isolated", i)), css: "r quiet extra" },
    { name: "#", sort: (i) => data.columns.order[i], text: (i) => String(data.columns.order[i]), css: "r quiet extra" },
  ];
  let rows = [], sort = heads.length - 1, descending = false, active = 0, drawn = "";
  const height = () => (narrow.matches ? 50 : 31);
  const arrange = () => {
    const key = heads[sort].sort, sign = descending ? -1 : 1, keys = new Map(rows.map((i) => [i, key(i)]));
    const last = (v) => typeof v === "number" && Number.isNaN(v);
    if (sort === heads.length - 1 && !descending) return rows.sort((a, b) => a - b);
    const words = new Intl.Collator("en", { numeric: true });
    rows.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (last(x) || last(y)) return last(x) - last(y) || a - b;
      return sign * (typeof x === "string" ? words.compare(x, y) : x < y ? -1 : x > y ? 1 : 0) || a - b;
    });
  };
  const line = (i, k) => {
    const verdict = data.verdict(i), row = make("tr", "", `${verdict === "diverged" ? "over" : ""}${i === data.first ? " first" : ""}`);
    row.append(...heads.map((head) => make("td", head.text(i), head.css)));
    row.cells[0].title = data.name(i);
    if (verdict === "diverged") row.cells[0].prepend(make("b", "▲ ", "mark"));
    row.cells[0].append(make("span", [data.word("coords", i), data.word("kind", i)].filter(Boolean).join(" · "), "below"));
    row.tabIndex = k === active ? 0 : -1; row.dataset.row = i; row.setAttribute("aria-rowindex", k + 2);
    row.style.height = `${height()}px`;
    return row;
  };
  const draw_ = (force = false) => {
    const high = height(), from = Math.max(0, Math.floor(scroll.scrollTop / high) - 10), to = Math.min(rows.length, from + Math.ceil(scroll.clientHeight / high) + 20);
    if (!force && drawn === `${from}-${to}`) return;
    drawn = `${from}-${to}`;
    const focused = body.contains(document.activeElement);
    const space = (count) => { const row = make("tr", "", "space"); row.style.height = `${count * high}px`; row.setAttribute("aria-hidden", "true"); return row; };
    body.replaceChildren(space(from), ...rows.slice(from, to).map((i, k) => line(i, from + k)), space(rows.length - to));
    if (focused) body.querySelector("tr[tabindex='0']")?.focus({ preventScroll: true });
  };
  const go = (k, focus = true) => {
    active = Math.min(Math.max(0, k), rows.length - 1);
    const high = height(), top = active * high, head = table.tHead.offsetHeight;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    if (top + high + head > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + high + head - scroll.clientHeight;
    draw_(true);
    if (focus) body.querySelector("tr[tabindex='0']")?.focus({ preventScroll: true });
  };
  const head = table.tHead.insertRow();
  heads.forEach((column, k) => {
    const cell = make("th", "", column.css.replace("quiet", "")), button = make("button", column.name);
    button.type = "button"; cell.scope = "col"; cell.append(button); head.append(cell);
    button.addEventListener("click", () => {
      descending = sort === k ? !descending : /error|floor|abs|isolated/.test(column.name); sort = k;
      arrange(); heading(); scroll.scrollTop = 0; active = 0; draw_(true);
    });
  });
  const heading = () => [...head.cells].forEach((cell, k) => cell.setAttribute("aria-sort", k !== sort ? "none" : descending ? "descending" : "ascending"));
  scroll.addEventListener("scroll", () => draw_());
  narrow.addEventListener("change", () => draw_(true));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-row]");
    if (row && !String(getSelection())) { active = rows.indexOf(Number(row.dataset.row)); open(Number(row.dataset.row)); }
  });
  body.addEventListener("keydown", (event) => {
    const page = Math.floor(scroll.clientHeight / height()) - 1;
    const next = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === "Enter" && rows.length) open(rows[active]);
    if (next !== undefined) { event.preventDefault(); go(next); }
  });
  heading();
  const reveal = (i) => { const k = rows.indexOf(i); if (k >= 0) { active = k; scroll.scrollTop = Math.max(0, (k - 2) * height()); draw_(true); } };
  return { reveal, filter: (kept) => { rows = [...kept]; arrange(); active = 0; scroll.scrollTop = 0; table.setAttribute("aria-rowcount", rows.length + 1); draw_(true); } };
};
