// Search and filters over map and table; a record's address is #at=SITE@COORDS.
(async () => {
  const [packed, values] = [await unpack("rows-data"), await unpack("values-data")];
  if (!packed) return;
  const { words, columns, first } = packed, count = columns.order.length;
  const every = (of) => Array.from({ length: count }, (_, i) => of(i)), numbers = {};
  const word = (name, i) => words[columns[name][i]];
  const number = (name, i) => (numbers[name] ??= Float64Array.from(columns[name], value))[i];
  const shortened = words.map((text) => text.replaceAll(", ", ","));
  const names = every((i) => { const at = shortened[columns.coords[i]]; return word("site", i) + (at ? `@${at}` : ""); });
  const ratios = every((i) => { const e = number("error", i), f = number("floor", i); return f > 0 ? e / f : e > 0 ? Infinity : e; });
  const verdicts = every((i) => { const f = columns.flags[i]; return f & 1 ? "diverged" : f & 8 ? "excused" : f & 2 ? "bitwise equal" : columns.error[i] === null ? "not measured" : "within floor"; });
  const parts = words.map((text) => text.split("."));
  const data = {
    columns, count, first, word, number, every,
    name: (i) => names[i], ratio: (i) => ratios[i], verdict: (i) => verdicts[i],
    module: (i, depth) => parts[columns.site[i]].slice(0, depth).join("."),
    ofSite: (i) => { const site = columns.site[i]; return columns.site.flatMap((other, k) => (other === site ? [k] : [])); },
  };
  const byName = new Map(); for (let i = count - 1; i >= 0; i--) byName.set(data.name(i), i);
  const root = document.getElementById("sites"), tools = root.querySelector("[data-tools]"), found = root.querySelector("[data-found]");
  const open = (i) => { const hash = `#at=${encodeURIComponent(data.name(i))}`; if (location.hash === hash) go(); else location.hash = hash; };
  const state = { query: [], module: "", kinds: new Set(), verdicts: new Set() };
  let rows = [];
  const panel = sitePanel(data, values, (i, by) => {
    const k = rows.indexOf(i), next = k < 0 ? i + by : rows[k + by];
    if (next >= 0 && next < count) history.replaceState(null, "", `#at=${encodeURIComponent(data.name(next))}`), go();
  });
  const go = () => {
    const asked = location.hash.startsWith("#at=") ? byName.get(decodeURIComponent(location.hash.slice(4))) : undefined;
    if (asked === undefined) return panel.close(false);
    panel.show(asked); map.cursor(asked);
  };
  const haystack = every((i) => `${names[i]} ${word("coords", i)} ${word("port", i)}`.toLowerCase());
  for (const name of ["table", "map"]) root.querySelector(`[data-${name}]`).hidden = false;
  tools.hidden = false;
  const map = siteMap(data, root.querySelector("[data-map]"), open), table = siteTable(data, root.querySelector("[data-table]"), open);
  const select = () => {
    rows = [];
    for (let i = 0; i < count; i++) {
      if (state.kinds.size && !state.kinds.has(columns.kind[i])) continue;
      if (state.verdicts.size && !state.verdicts.has(data.verdict(i))) continue;
      if (state.module && !`${data.word("site", i)}.`.startsWith(`${state.module}.`)) continue;
      if (state.query.every((part) => haystack[i].includes(part))) rows.push(i);
    }
    found.textContent = rows.length === count ? `${whole(count)} records` : rows.length ? `${whole(rows.length)} of ${whole(count)} records` : "no record matches";
    table.filter(rows); map.filter(rows);
  };
  const chips = (box, names, of, chosen) => {
    const tally = new Map(); for (let i = 0; i < count; i++) tally.set(of(i), (tally.get(of(i)) || 0) + 1);
    for (const [key, amount] of tally) {
      const chip = make("button", names(key), "chip"); chip.type = "button";
      chip.append(" ", make("b", whole(amount))); chip.setAttribute("aria-pressed", "false");
      chip.addEventListener("click", () => {
        chosen.has(key) ? chosen.delete(key) : chosen.add(key);
        chip.setAttribute("aria-pressed", String(chosen.has(key))); select();
      });
      box.append(chip);
    }
  };
  chips(tools.querySelector(".verdicts"), (key) => key, data.verdict, state.verdicts);
  chips(tools.querySelector(".kinds"), (key) => words[key] || "other", (i) => columns.kind[i], state.kinds);
  const modules = new Map();
  for (let i = 0; i < count; i++) for (const depth of [1, 2, 3]) {
    const name = data.module(i, depth), tally = modules.get(name) || [0, 0];
    if (depth > 1 && name === data.module(i, depth - 1)) break;
    tally[0] += 1; tally[1] += columns.flags[i] & 1; modules.set(name, tally);
  }
  const select_ = tools.querySelector("select");
  select_.append(...[...modules].slice(0, 1500).map(([name, [all, wrong]]) => { const option = make("option", `${name} (${wrong ? `${whole(wrong)} diverged of ` : ""}${whole(all)})`); option.value = name; return option; }));
  select_.addEventListener("change", () => { state.module = select_.value; select(); });
  const search = tools.querySelector("input[type=search]");
  search.addEventListener("input", () => { state.query = search.value.toLowerCase().split(/\s+/).filter(Boolean); select(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); search.focus(); }
  });
  const inline = document.querySelector("[data-first-values]"), view = first >= 0 && values?.[data.name(first)];
  const fill = () => { if (inline && view) inline.replaceChildren(make("h3", "Values of both sides"), valuesOf(view)); };
  fill(); document.addEventListener("colours", fill);
  addEventListener("hashchange", go);
  select(); if (first >= 0) table.reveal(first);
  go();
  document.body.dataset.ready = "true";
})();
