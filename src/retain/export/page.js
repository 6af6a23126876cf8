// The RNN reads the typed text, character by character, and then generates a continuation.

const KEPT = 64; // Stored are the states after the last KEPT pieces, and every KEPT-th one before. Edits go back to them.
const HOTTEST = 10; // Bits of surprise with the deepest colour.

const $ = (id) => document.getElementById(id);
let meta, ort, session, readout;
let start, shown; // States: before the text, and after all that is shown.
let typed = []; // The pieces of the text that have been read: {text, bits, span, state}.
let job = 0; // The number of the newest job. A job that finds a newer one ends.
let lastFrame = 0;
const speed = { tokens: 0, ms: 0 };

// Text to tokens, and tokens to text. A piece is text that is coloured as one unit: [text, its tokens].
const encoder = new TextEncoder();
const codecs = {
  bytes: {
    split: (text) => Array.from(text, (character) => [character, [...encoder.encode(character)]]),
    reader() {
      const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      return (token) => decoder.decode(Uint8Array.of(token), { stream: true }); // "" within a character
    },
  },
  numbers: {
    split: (text) =>
      (text.match(/\s*\S+|\s+$/g) ?? []).map((piece) => {
        const number = piece.trim();
        if (number && !(/^\d+$/.test(number) && +number < meta.vocab_size))
          throw new Error(`${number} is not a token: type numbers from 0 to ${meta.vocab_size - 1}, separated by spaces`);
        return [piece, number ? [+number] : []];
      }),
    reader() {
      let before = /\S$/.test($("text").value) ? " " : "";
      return (token) => {
        const text = before + token;
        before = " ";
        return text;
      };
    },
  },
};

// A state is the memory and the logits of the next token. It is never changed, so that an edit can go back to it.
const asMemory = (numbers) => new ort.Tensor("float32", numbers, [1, ...meta.shapes.memory.slice(1)]);

async function stateOf(memory) {
  const { logits } = await readout.run({ memory: asMemory(memory) });
  return { memory, logits: logits.data, count: 0 };
}

async function step(state, token) {
  const begun = performance.now();
  const inputs = { token: new ort.Tensor("int64", BigInt64Array.of(BigInt(token)), [1]), memory: asMemory(state.memory) };
  const { logits, next_memory } = await session.run(inputs);
  speed.ms += performance.now() - begun;
  speed.tokens += 1;
  return { memory: next_memory.data, logits: logits.data, count: state.count + 1 };
}

function surprise(logits, token) {
  const top = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - top), 0);
  return (top + Math.log(sum) - logits[token]) / Math.LN2;
}

function sample(logits, temperature) {
  const top = logits.reduce((best, logit, i) => (logit > logits[best] ? i : best), 0);
  if (temperature === 0) return top;
  const weights = logits.map((logit) => Math.exp((logit - logits[top]) / temperature));
  let left = Math.random() * weights.reduce((a, b) => a + b);
  const drawn = weights.findIndex((weight) => (left -= weight) < 0);
  return drawn < 0 ? top : drawn; // < 0: rounding
}

function show(parent, text, bits) {
  const span = document.createElement("span");
  span.textContent = text;
  span.dataset.bits = bits.toFixed(2);
  span.style.setProperty("--heated", `${Math.round((85 * Math.min(bits, HOTTEST)) / HOTTEST)}%`);
  if (text.includes("\n")) span.className = "line";
  parent.append(span);
  return span;
}

// Reads the text from the first piece that has changed, and then generates.
async function update() {
  const mine = ++job;
  document.body.dataset.state = "busy";
  $("stop").hidden = false;
  try {
    complain("");
    $("continuation").replaceChildren();
    const pieces = codecs[meta.codec].split($("text").value);
    let same = 0;
    while (same < typed.length && same < pieces.length && typed[same].text === pieces[same][0]) same++;
    while (same > 0 && !typed[same - 1].state) same--;
    for (const { span } of typed.splice(same)) span.remove();
    let state = (shown = same ? typed[same - 1].state : start);
    for (const [text, tokens] of pieces.slice(same)) {
      let bits = 0;
      for (const token of tokens) {
        bits += surprise(state.logits, token);
        state = await step(state, token);
      }
      if (mine !== job) return;
      shown = state;
      typed.push({ text, bits, state, tokens: tokens.length, span: show($("typed"), text, bits) });
      const old = typed.length - 1 - KEPT;
      if (old >= 0 && old % KEPT) typed[old].state = null;
      await frame();
      if (mine !== job) return;
    }
    await goOn(mine, state);
  } catch (error) {
    if (mine === job) complain(error.message);
  } finally {
    if (mine === job) finish();
  }
}

async function goOn(mine, state) {
  const temperature = +$("temperature").value;
  const read = codecs[meta.codec].reader();
  let bits = 0;
  for (let n = 0; n < +$("length").value; n++) {
    const token = sample(state.logits, temperature);
    if (token === meta.end) break;
    bits += surprise(state.logits, token);
    state = await step(state, token);
    if (mine !== job) return;
    shown = state;
    const text = read(token);
    if (text) {
      show($("continuation"), text, bits);
      bits = 0;
    }
    const pace = +$("pace").value;
    if (pace) {
      draw();
      await new Promise((resolve) => setTimeout(resolve, pace));
    } else await frame();
    if (mine !== job) return;
  }
}

function finish() {
  draw();
  $("stop").hidden = true;
  document.body.dataset.state = "idle";
}

// Lets the browser draw, at most every 12 ms.
async function frame() {
  if (performance.now() - lastFrame < 12) return;
  draw();
  await new Promise(requestAnimationFrame);
  lastFrame = performance.now();
}

function draw() {
  const { memory, count } = shown;
  const canvas = $("picture");
  let columns = Math.ceil(Math.sqrt(memory.length));
  while (memory.length % columns) columns++;
  if (canvas.width !== columns) [canvas.width, canvas.height] = [columns, memory.length / columns];
  const image = new ImageData(columns, memory.length / columns);
  const most = 2 * Math.sqrt(memory.reduce((sum, x) => sum + x * x, 0) / memory.length) || 1;
  memory.forEach((x, i) => image.data.set([...colours[+(x > 0)], 255 * Math.min(1, Math.abs(x) / most)], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  $("count").textContent = count.toLocaleString("en");
  const tokens = typed.reduce((sum, piece) => sum + piece.tokens, 0);
  const bits = typed.reduce((sum, piece) => sum + piece.bits, 0);
  const unit = meta.codec === "bytes" ? "byte" : "token";
  $("score").textContent = tokens ? `${(bits / tokens).toFixed(2)} bits per ${unit}` : "–";
  if (speed.tokens >= 50) {
    $("rate").textContent = Math.round((speed.tokens / speed.ms) * 1000).toLocaleString("en");
    speed.tokens = speed.ms = 0;
  }
}

let colours;
function readColours() {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  colours = ["--below", "--above"].map((name) => {
    probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  });
}

function complain(message) {
  $("message").textContent = message;
  $("message").hidden = !message;
}

// A memory is saved as safetensors: the length of a JSON header in 8 bytes, the header, the numbers.
function asSafetensors(memory) {
  const entry = { dtype: "F32", shape: [1, ...meta.shapes.memory.slice(1)], data_offsets: [0, memory.byteLength] };
  const json = JSON.stringify({ memory: entry });
  const header = encoder.encode(json.padEnd(Math.ceil(json.length / 8) * 8));
  return new Blob([BigUint64Array.of(BigInt(header.length)), header, memory], { type: "application/octet-stream" });
}

function fromSafetensors(buffer) {
  const wanted = [1, ...meta.shapes.memory.slice(1)];
  let entry, begin;
  try {
    begin = 8 + Number(new DataView(buffer).getBigUint64(0, true));
    entry = JSON.parse(new TextDecoder().decode(buffer.slice(8, begin))).memory;
  } catch {
    throw new Error("That file is not a .safetensors file; load one that was saved here.");
  }
  if (entry?.dtype !== "F32" || String(entry.shape) !== String(wanted))
    throw new Error(`That file has no memory of this RNN (32-bit numbers of shape ${wanted.join(" × ")}).`);
  const [from, to] = entry.data_offsets;
  return new Float32Array(buffer.slice(begin + from, begin + to));
}

async function beginAt(memory, name) {
  start = await stateOf(memory);
  $("text").value = "";
  for (const { span } of typed.splice(0)) span.remove();
  $("origin").textContent = name;
  $("anew").hidden = name === "m₀";
  update();
}

function listen() {
  $("text").addEventListener("input", update);
  $("again").addEventListener("click", update);
  for (const id of ["temperature", "length"]) $(id).addEventListener("change", update);
  $("temperature").addEventListener("input", () => ($("degrees").textContent = (+$("temperature").value).toFixed(2)));
  $("stop").addEventListener("click", () => {
    job++;
    finish();
  });
  $("keep").addEventListener("click", () => {
    $("text").value += $("continuation").textContent;
    update();
  });
  $("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(asSafetensors(shown.memory));
    link.download = "memory.safetensors";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  });
  $("take").addEventListener("change", async () => {
    const [file] = $("take").files;
    $("take").value = ""; // so that the same file can be chosen again
    try {
      await beginAt(fromSafetensors(await file.arrayBuffer()), file.name);
    } catch (error) {
      complain(error.message);
    }
  });
  $("anew").addEventListener("click", () => beginAt(Float32Array.from(meta.m_0.flat()), "m₀"));
  document.querySelector(".paper").addEventListener("mousemove", (event) => {
    const span = document.elementsFromPoint(event.clientX, event.clientY).find((element) => element.dataset.bits);
    if (span) $("pointed").textContent = `${JSON.stringify(span.textContent)}: ${span.dataset.bits} bits`;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    draw();
  });
}

async function load() {
  if (location.protocol === "file:") throw new Error("Serve this folder, e.g. by python -m http.server, and open its address.");
  meta = await (await fetch("metadata.json")).json();
  const runtime = new URL(meta.runtime.path, location.href).href;
  ort = await import(`${runtime}ort.wasm.min.mjs`);
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = 1; // a step is too small to be parallel
  [session, readout] = [await ort.InferenceSession.create("step.onnx"), await ort.InferenceSession.create("readout.onnx")];
  const [, tokens, width] = meta.shapes.memory;
  document.title = $("name").textContent = meta.name;
  $("what").textContent =
    `An RNN of ${meta.parameters.toLocaleString("en")} parameters with a memory of ${tokens} × ${width} numbers, ` +
    "whatever the length of the text. It runs in your browser. Type, and it continues.";
  $("runtime").textContent = `onnxruntime-web ${meta.runtime.version}, from ${meta.runtime.source}`;
  readColours();
  listen();
  await beginAt(Float32Array.from(meta.m_0.flat()), "m₀");
  document.documentElement.dataset.ready = "yes";
}

load().catch((error) => {
  $("what").textContent = "";
  complain(`The RNN cannot be loaded. ${error.message}`);
});
