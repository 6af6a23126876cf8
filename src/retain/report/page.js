// Draws the figures that stand in #figures, in the reader's theme, and lets the page's switches change them.
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
// The tool bar stands beside the caption (page.css), so it has only the buttons that the mouse does not replace. And
// nothing leaves this page.
const spare = ["sendChartToCloud", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetCameraLastSave3d", "hoverClosest3d"];
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: spare, toImageButtonOptions: { format: "svg" } };
const drawn = new Set();

function theme(three, print) {
  const d = dark.matches && !print;
  const ink = d ? "#c6ced6" : "#39424c", grid = d ? "#2e3742" : "#e1e5ea", clear = "rgba(0,0,0,0)";
  const layout = { paper_bgcolor: clear, plot_bgcolor: clear, "font.color": ink, "font.size": 12 };
  // Plotly would choose the colours of the tool bar by the ground, which is clear, and so make it dark.
  Object.assign(layout, { "modebar.bgcolor": clear, "modebar.color": d ? "#7f8b97" : "#8a949f", "modebar.activecolor": ink });
  const axes = three ? ["scene.xaxis", "scene.yaxis", "scene.zaxis"] : ["xaxis", "yaxis"];
  for (const axis of axes) {
    layout[axis + ".gridcolor"] = grid;
    layout[axis + ".linecolor"] = grid;
    layout[axis + ".color"] = ink;
    if (three) layout[axis + ".backgroundcolor"] = clear;
  }
  return layout;
}

// "a.b": v set into a nested object, as Plotly.relayout reads it.
function set(target, changes) {
  for (const [path, value] of Object.entries(changes)) {
    const keys = path.split("."), last = keys.pop();
    keys.reduce((at, key) => (at[key] = at[key] || {}), target)[last] = value;
  }
}

let has3d; // asked only when the first 3-D plot is drawn: it takes long without a graphics card
function webgl() {
  try { has3d ??= !!document.createElement("canvas").getContext("webgl"); } catch { has3d = false; }
  return has3d;
}

// Plotly takes longer to load than all else on the page: it is unpacked and compiled beside it, not before it.
const loaded = (async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.src = URL.createObjectURL(new Blob([await new Response(stream).blob()], { type: "text/javascript" }));
  await new Promise((done, failed) => {
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
})();

function draw(div) {
  if (!window.Plotly) return loaded.then(() => draw(div));
  if (drawn.has(div)) return Promise.resolve();
  drawn.add(div);
  const three = div.hasAttribute("data-three");
  if (three && !webgl()) {
    div.classList.add("none");
    div.textContent = "This browser draws no 3-D plots (WebGL is off).";
    return Promise.resolve();
  }
  const figure = figures[div.dataset.plot];
  set(figure.layout, theme(three, false));
  return Plotly.newPlot(div, figure.data, figure.layout, config).then(() => {
    for (const field of document.querySelectorAll("fieldset[data-switch]")) change(div, field);
  });
}

const plots = [...document.querySelectorAll(".plot")];

function change(div, field) {
  const name = field.dataset.switch, chosen = field.querySelector("input:checked");
  const mine = name === "axis" || div.dataset.plot.startsWith("memory-" + name.split("-")[1] + "-");
  const options = ((figures[div.dataset.plot].layout.meta || {}).switch || {})[name.split("-")[0]];
  if (!mine || !options || !chosen || !options[chosen.value] || !div.data) return;
  if (div.dataset.shown === chosen.value) return;
  const first = div.dataset.shown === undefined && chosen === field.querySelector("input");
  div.dataset.shown = chosen.value;
  if (first) return;
  const [traces, layout] = options[chosen.value];
  Plotly.update(div, traces, { ...layout, ...(name === "axis" ? { "xaxis.autorange": true } : {}) });
}

for (const field of document.querySelectorAll("fieldset[data-switch]")) {
  // A reload may bring back what was chosen before.
  field.addEventListener("change", () => plots.forEach((div) => change(div, field)));
}

// On paper two plots stand side by side, and no window tells them their width.
const PAPER = 310;
function rethemed(print) {
  const size = { autosize: !print, width: print ? PAPER : null };
  for (const div of drawn) if (div.data) Plotly.relayout(div, { ...theme(div.hasAttribute("data-three"), print), ...size });
}
dark.addEventListener("change", () => rethemed(false));
window.addEventListener("beforeprint", () => { plots.forEach(draw); rethemed(true); });
window.addEventListener("afterprint", () => rethemed(false));

loaded.catch(() => {
  for (const div of plots) {
    div.classList.add("none");
    div.textContent = "This browser is too old to draw the plots; their numbers are in the JSON next to this page.";
  }
});

// What is in sight first; the others one by one, so that the page never stands still.
(async () => {
  await loaded;
  const height = window.innerHeight;
  const order = plots.map((div) => [div, div.getBoundingClientRect().top]);
  for (const [div] of order.filter(([, top]) => top < height)) await draw(div);
  document.documentElement.dataset.open = Math.round(performance.now());
  for (const [div] of order) {
    await draw(div);
    await new Promise((done) => setTimeout(done));
  }
  document.documentElement.dataset.ready = Math.round(performance.now());
})();

for (const button of document.querySelectorAll(".copy button")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // From the file system some browsers have no clipboard: select it instead.
      getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
