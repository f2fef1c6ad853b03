"use strict";
// The frame viewer and the table of sites. Values reach the page through textContent and src only, never as HTML.
(() => {
  const buttons = [...document.querySelectorAll(".strip button")];
  const show = (button) => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    for (const big of document.querySelectorAll("[data-big]")) {
      const part = button.querySelector(`[data-part=${big.dataset.big}]`);
      if (big.dataset.big === "index") big.textContent = button.dataset.frame;
      else { big.style.visibility = part ? "visible" : "hidden"; if (part) big.src = part.src; }
    }
  };
  buttons.forEach((button, i) => {
    button.addEventListener("click", () => show(button));
    button.addEventListener("keydown", (event) => {
      const next = buttons[i + { ArrowRight: 1, ArrowLeft: -1 }[event.key]];
      if (next) { next.focus(); show(next); event.preventDefault(); }
    });
  });
})();
(async () => {
  const source = document.getElementById("rows-data");
  if (!source) return;
  const packed = Uint8Array.from(atob(source.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const { words, columns } = JSON.parse(await new Response(stream).text());
  const PAGE = 50, count = columns.order.length;
  const word = (name, i) => words[columns[name][i]];
  const value = (v) => (v === null ? NaN : v === "inf" ? Infinity : v === "-inf" ? -Infinity : v);
  const short = (v) => (Number.isNaN(v) ? "–" : v === 0 ? "0" : !Number.isFinite(v) ? (v > 0 ? "∞" : "−∞")
    : Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5 ? v.toExponential(2).replace("e+", "e") : String(Number(v.toPrecision(3))));
  const ratio = (i) => { const e = value(columns.error[i]), f = value(columns.floor[i]); return f > 0 ? e / f : e > 0 ? Infinity : e; };
  const number = (name) => (i) => value(columns[name][i]);
  const heads = [
    { name: "#", sort: (i) => columns.order[i], text: (i) => String(columns.order[i]), css: "r quiet" },
    { name: "site", sort: (i) => word("site", i), text: (i) => word("site", i), css: "site" },
    { name: "where", sort: (i) => word("coords", i), text: (i) => word("coords", i), css: "quiet" },
    { name: "kind", sort: (i) => word("kind", i), text: (i) => word("kind", i), css: "quiet" },
    { name: "error", sort: number("error"), text: (i) => (columns.flags[i] & 2 ? "bitwise" : (columns.flags[i] & 4 ? "≈ " : "") + short(value(columns.error[i]))), css: "r" },
    { name: "floor", sort: number("floor"), text: (i) => short(value(columns.floor[i])), css: "r quiet" },
    { name: "× floor", sort: ratio, text: (i) => short(ratio(i)), css: "r" },
    { name: "max abs", sort: number("max_abs"), text: (i) => short(value(columns.max_abs[i])), css: "r quiet" },
    { name: "SQNR dB", sort: number("sqnr"), text: (i) => short(value(columns.sqnr[i])), css: "r quiet" },
    { name: "isolated", sort: number("isolated"), text: (i) => short(value(columns.isolated[i])), css: "r quiet" },
  ];
  const haystack = Array.from({ length: count }, (_, i) => `${word("site", i)} ${word("coords", i)}`.toLowerCase());
  const state = { sort: 0, down: false, query: [], diverged: false, kinds: new Set(), page: 0, rows: [] };
  const table = document.querySelector("[data-rows]"), body = table.tBodies[0];
  const tools = document.querySelector("[data-table]"), pager = document.querySelector("[data-pager]");
  const make = (tag, text, css) => { const node = document.createElement(tag); node.textContent = text; if (css) node.className = css; return node; };

  const select = () => {
    const kept = [];
    for (let i = 0; i < count; i++) {
      if (state.diverged && !(columns.flags[i] & 1)) continue;
      if (state.kinds.size && !state.kinds.has(columns.kind[i])) continue;
      if (state.query.every((part) => haystack[i].includes(part))) kept.push(i);
    }
    const key = heads[state.sort].sort, sign = state.down ? -1 : 1;
    const keys = new Map(kept.map((i) => [i, key(i)]));
    const last = (v) => typeof v === "number" && Number.isNaN(v);
    kept.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (last(x) || last(y)) return last(x) - last(y) || a - b;
      const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x < y ? -1 : x > y ? 1 : 0;
      return sign * order || a - b;
    });
    state.rows = kept; state.page = 0; draw();
  };
  const details = (row, i) => {
    if (row.nextSibling?.className === "more") return row.nextSibling.remove();
    const more = [["shape", word("shape", i)], ["dtype", word("dtype", i)], ["aligned by", word("how", i)],
      ["reference's own error", short(value(columns.precise[i]))], ["share over tolerance", short(value(columns.over[i]))],
      ["non-finite", word("nonfinite", i) || "none"]];
    const line = make("tr", "", "more"), cell = make("td", more.map(([name, text]) => `${name} ${text || "–"}`).join("   ·   "));
    cell.colSpan = heads.length; line.append(cell); row.after(line);
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(state.rows.length / PAGE)), from = state.page * PAGE;
    body.replaceChildren(...state.rows.slice(from, from + PAGE).map((i) => {
      const row = make("tr", "", columns.flags[i] & 1 ? "over" : "");
      row.append(...heads.map((head) => make("td", head.text(i), head.css)));
      row.addEventListener("click", () => { if (!String(getSelection())) details(row, i); });
      return row;
    }));
    [...table.tHead.rows[0].cells].forEach((cell, k) =>
      cell.setAttribute("aria-sort", k !== state.sort ? "none" : state.down ? "descending" : "ascending"));
    const step = (text, by) => {
      const button = make("button", text); button.type = "button";
      button.disabled = state.page + by < 0 || state.page + by >= pages;
      button.addEventListener("click", () => { state.page += by; draw(); });
      return button;
    };
    pager.replaceChildren(step("previous", -1), step("next", 1), make("span", state.rows.length
      ? `${(from + 1).toLocaleString("en")}–${Math.min(from + PAGE, state.rows.length).toLocaleString("en")} of ${state.rows.length.toLocaleString("en")}`
      : "no site matches"));
  };

  const head = table.tHead.insertRow();
  heads.forEach((column, k) => {
    const cell = make("th", column.name, column.css.includes("r") && column.css.split(" ").includes("r") ? "r" : "");
    cell.addEventListener("click", () => { state.down = state.sort === k ? !state.down : k > 3; state.sort = k; select(); });
    head.append(cell);
  });
  const tally = new Map();
  for (const kind of columns.kind) tally.set(kind, (tally.get(kind) || 0) + 1);
  const kinds = tools.querySelector(".kinds");
  for (const [kind, amount] of tally) {
    const chip = make("button", words[kind] || "other", "chip"); chip.type = "button";
    chip.append(" ", make("b", amount.toLocaleString("en"))); chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      state.kinds.has(kind) ? state.kinds.delete(kind) : state.kinds.add(kind);
      chip.setAttribute("aria-pressed", String(state.kinds.has(kind))); select();
    });
    kinds.append(chip);
  }
  tools.querySelector("input[type=search]").addEventListener("input", (event) => {
    state.query = event.target.value.toLowerCase().split(/\s+/).filter(Boolean); select();
  });
  tools.querySelector("input[type=checkbox]").addEventListener("change", (event) => { state.diverged = event.target.checked; select(); });
  table.hidden = tools.hidden = pager.hidden = false;
  select();
})();
