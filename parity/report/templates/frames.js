// The frame viewer: side by side or one over the other with a wipe, and playback.
for (const viewer of document.querySelectorAll("[data-frames]")) {
  const buttons = [...viewer.querySelectorAll(".strip button")];
  if (!buttons.length) continue;
  const find = (name) => viewer.querySelector(`[data-big=${name}]`);
  const wipe = viewer.querySelector("[data-wipe]"), stage = viewer.querySelector(".wipe"), edge = viewer.querySelector("[data-edge]");
  const play = viewer.querySelector("[data-play]"), mode = viewer.querySelector("[data-mode]");
  let chosen = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true"), timer = 0;
  const show = (i) => {
    chosen = i;
    buttons.forEach((other, k) => { other.setAttribute("aria-pressed", String(k === i)); other.tabIndex = k === i ? 0 : -1; });
    for (const name of ["reference", "port", "difference"]) {
      const part = buttons[i].querySelector(`[data-part=${name}]`), big = find(name);
      if (big) { big.style.visibility = part ? "visible" : "hidden"; if (part) big.src = part.src; }
      const over = stage.querySelector(`[data-over=${name}]`);
      if (over) { over.style.visibility = part ? "visible" : "hidden"; if (part) over.src = part.src; }
    }
    find("index").textContent = buttons[i].dataset.frame;
    const strip = buttons[i].parentElement;
    strip.scrollLeft = buttons[i].offsetLeft - strip.offsetLeft - strip.clientWidth / 2 + 50;
  };
  const split = () => { stage.style.setProperty("--at", `${edge.value}%`); };
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "▶ play"; };
  viewer.querySelector(".controls").hidden = false;
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "❚❚ pause";
    timer = setInterval(() => show((chosen + 1) % buttons.length), 1000 / Number(play.dataset.play));
  });
  mode.addEventListener("click", () => {
    const on = mode.getAttribute("aria-pressed") !== "true";
    mode.setAttribute("aria-pressed", String(on));
    stage.hidden = wipe.hidden = !on; viewer.querySelector(".viewer").hidden = on;
  });
  edge.addEventListener("input", split);
  buttons.forEach((button, i) => button.addEventListener("click", () => { stop(); show(i); }));
  viewer.querySelector(".strip").addEventListener("keydown", (event) => {
    const next = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (event.key === " ") { event.preventDefault(); return play.click(); }
    if (next === undefined || !buttons[next]) return;
    event.preventDefault(); stop(); show(next); buttons[next].focus();
  });
  split(); show(chosen);
}
