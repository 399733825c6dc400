"use strict";
// One photograph goes to /parse; what comes back is drawn here: the server keeps nothing.

const at = (id) => document.getElementById(id);
const shown = { parts: [], ids: null, width: 0, height: 0, name: "" };
let latest = 0; // number of the last request: an answer to an earlier one is dropped

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

async function parse(file) {
  const request = ++latest;
  say(`Parsing ${file.name} …`);
  try {
    const query = at("several").checked ? "?detect=1" : "";
    const response = await fetch(`parse${query}`, {
      method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
    if (request !== latest) return;
    if (!response.ok) throw new Error(answer.error);
    const photograph = await createImageBitmap(file).catch(() => null);
    await show(file.name, photograph, answer);
  } catch (error) {
    if (request !== latest) return;
    at("result").hidden = true;
    say(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
  }
}

async function show(name, photograph, answer) {
  const { labels, legend, ...described } = answer;
  const [width, height] = answer.size;
  const picture = new Image();
  picture.src = labels;
  await picture.decode();
  for (const canvas of [at("photo"), at("overlay")]) Object.assign(canvas, { width, height });
  const drawing = at("overlay").getContext("2d", { willReadFrequently: true });
  drawing.drawImage(picture, 0, 0);
  shown.ids = idsOf(drawing.getImageData(0, 0, width, height).data, legend);
  Object.assign(shown, { parts: legend, width, height, name: name.replace(/\.[^.]*$/, "") });
  const under = at("photo").getContext("2d");
  if (photograph) under.drawImage(photograph, 0, 0, width, height);
  else under.clearRect(0, 0, width, height);
  listParts();
  at("labels").href = labels;
  const text = JSON.stringify({ image: name, ...described }, null, 1);
  at("json").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  for (const id of ["labels", "mask"]) at(id).download = `${shown.name}_${id}.png`;
  at("json").download = `${shown.name}.json`;
  at("result").hidden = false;
  redraw();
  const count = answer.faces.length;
  const seen = count === 0 ? "No face found" : count === 1 ? "One face" : `${count} faces`;
  say(`${seen} in ${name}.${photograph ? "" : " This browser cannot show such a file."}`);
}

function idsOf(pixels, legend) {
  const known = new Map(legend.map(({ id, colour: [r, g, b] }) => [(r << 16) | (g << 8) | b, id]));
  const ids = new Uint8Array(pixels.length / 4);
  for (let i = 0; i < ids.length; i++) {
    ids[i] = known.get((pixels[4 * i] << 16) | (pixels[4 * i + 1] << 8) | pixels[4 * i + 2]) || 0;
  }
  return ids;
}

function listParts() {
  const off = new Set([...document.querySelectorAll("#parts input:not(:checked)")].map((box) => Number(box.value)));
  const count = new Array(shown.parts.length + 1).fill(0);
  for (const id of shown.ids) count[id]++;
  at("parts").replaceChildren(at("parts").querySelector("legend"), ...shown.parts.map(({ id, name, colour }) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: id, checked: !off.has(id) });
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${colour})`;
    const pixels = Object.assign(document.createElement("span"), { textContent: `${count[id]} px` });
    label.append(box, swatch, name.replace("_", " "), pixels);
    return label;
  }));
}

function chosen() {
  return new Set([...document.querySelectorAll("#parts input:checked")].map((box) => Number(box.value)));
}

function paint(context, colourOf) {
  const image = context.createImageData(shown.width, shown.height);
  shown.ids.forEach((id, i) => image.data.set(colourOf(id), 4 * i));
  context.putImageData(image, 0, 0);
}

function redraw() {
  if (!shown.ids) return;
  const on = chosen();
  const colours = new Map(shown.parts.map(({ id, colour }) => [id, [...colour, 255]]));
  paint(at("overlay").getContext("2d"), (id) => (on.has(id) ? colours.get(id) : [0, 0, 0, 0]));
  const names = shown.parts.filter(({ id }) => on.has(id)).map(({ name }) => name.replace("_", " "));
  at("overlay").setAttribute("aria-label", `Overlay of ${names.join(", ") || "nothing"}`);
  const mask = Object.assign(document.createElement("canvas"), { width: shown.width, height: shown.height });
  paint(mask.getContext("2d"), (id) => (on.has(id) ? [255, 255, 255, 255] : [0, 0, 0, 255]));
  at("mask").href = mask.toDataURL("image/png");
}

at("file").addEventListener("change", () => at("file").files[0] && parse(at("file").files[0]));
at("several").addEventListener("change", () => at("file").files[0] && parse(at("file").files[0]));
at("parts").addEventListener("change", redraw);
at("strength").addEventListener("input", () => {
  at("overlay").style.opacity = at("strength").value / 100;
  at("shown").textContent = `${at("strength").value} %`;
});
at("overlay").style.opacity = at("strength").value / 100;
for (const event of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(event, (happened) => {
    happened.preventDefault();
    at("drop").classList.toggle("over", event === "dragenter" || event === "dragover");
    const file = event === "drop" && happened.dataTransfer.files[0];
    if (file) parse(file);
  });
}
