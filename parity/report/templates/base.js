"use strict";
// What every page has: light and dark, copy buttons. Values reach the page through textContent, setAttribute and src only, never as HTML.
const make = (tag, text = "", css = "") => {
  const node = document.createElement(tag);
  if (text !== "") node.textContent = text;
  if (css) node.className = css;
  return node;
};
const draw = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const short = (v) => (Number.isNaN(v) ? "–" : v === 0 ? "0" : !Number.isFinite(v) ? (v > 0 ? "∞" : "−∞")
  : Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5 ? v.toExponential(2).replace("e+", "e") : String(Number(v.toPrecision(3))));
const whole = (n) => n.toLocaleString("en");
const unpack = async (id) => {
  const source = document.getElementById(id);
  if (!source) return null;
  const bytes = Uint8Array.from(atob(source.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};
const remembered = (value) => {  // pages opened as files may not be allowed to store anything
  try { if (value !== undefined) localStorage.setItem("parity-theme", value); return localStorage.getItem("parity-theme"); }
  catch { return null; }
};
const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
{
  const button = document.querySelector("[data-theme-switch]");
  const wear = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    button.textContent = isDark() ? "☀" : "☾";
    button.setAttribute("aria-label", isDark() ? "light colours" : "dark colours");
    document.dispatchEvent(new Event("colours"));
  };
  wear(["light", "dark"].includes(remembered()) ? remembered() : "");
  button.hidden = false;
  button.addEventListener("click", () => { const next = isDark() ? "light" : "dark"; remembered(next); wear(next); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => wear(""));
}
const copyButton = (button, text) => button.addEventListener("click", async () => {
  try { await navigator.clipboard.writeText(text()); }
  catch {  // no permission: the old way
    const field = make("textarea", text()); document.body.append(field); field.select(); document.execCommand("copy"); field.remove();
  }
  button.textContent = "copied"; setTimeout(() => { button.textContent = "copy"; }, 1500);
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  copyButton(button, () => button.parentElement.querySelector("code").textContent);
}
for (const box of document.querySelectorAll(".scroll:has(.ops)")) {
  const edit = box.querySelector(".edit");  // operations open at the first edit
  if (edit) box.scrollTop = Math.max(0, edit.offsetTop - 90);
}
{
  const chips = [...document.querySelectorAll("[data-verdict-filter]")];
  for (const chip of chips) chip.addEventListener("click", () => {
    const on = chip.getAttribute("aria-pressed") !== "true";
    for (const other of chips) other.setAttribute("aria-pressed", String(other === chip && on));
    for (const row of document.querySelectorAll("table.index tbody tr")) row.hidden = on && !row.classList.contains(chip.dataset.verdictFilter);
  });
}
