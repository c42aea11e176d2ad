"use strict";

// What is seen: a plane of two dimensions of the code, its image, and a slider for each dimension.
const { draws, ranges, plane: shown, shape } = JSON.parse(document.getElementById("latents").textContent);
const [channels, height, width] = shape;
const find = (id) => document.getElementById(id);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const z = [...draws[0]];
let taken = 0;

// Images ------------------------------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
let inverted = channels === 1 && !dark.matches; // ink on paper, as in print

function paint(canvas, values) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = context.createImageData(width, height);
  const size = width * height;
  for (let i = 0; i < size; i++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = values[channels === 3 ? channel * size + i : i];
      pixels.data[4 * i + channel] = Math.round(255 * (inverted ? 1 - value : value)); // clipped to 0, ..., 255
    }
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

// The plane ---------------------------------------------------------------------------------------------------------

const map = document.createElement("canvas"); // decoded codes all over the plane, the other dimensions as they are
const tile = document.createElement("canvas");
let [across, up = across] = shown;
let cells = 0;
let nextCell = 0;
let showDots = false;

const toCode = (dimension, share) => ranges[dimension][0] + share * (ranges[dimension][1] - ranges[dimension][0]);
const toShare = (dimension, value) => (value - ranges[dimension][0]) / (ranges[dimension][1] - ranges[dimension][0]);
const written = (number) => String(number).replace("-", "\u2212");
const clip = (share) => Math.min(1, Math.max(0, share));

function restartMap() {
  nextCell = 0;
  requestFrame();
}

function drawMap(until) {
  const context = map.getContext("2d");
  context.imageSmoothingQuality = "high";
  const size = map.width / cells;
  const code = [...z];
  for (; nextCell < cells * cells && performance.now() < until; nextCell++) {
    const [row, column] = [Math.floor(nextCell / cells), nextCell % cells];
    code[across] = toCode(across, (column + 0.5) / cells);
    code[up] = toCode(up, 1 - (row + 0.5) / cells);
    paint(tile, decode(code));
    const [left, top] = [Math.round(column * size), Math.round(row * size)];
    context.drawImage(tile, left, top, Math.round((column + 1) * size) - left, Math.round((row + 1) * size) - top);
  }
}

function drawPlane() {
  const canvas = find("plane");
  const context = canvas.getContext("2d");
  const size = canvas.width;
  const scale = size / canvas.clientWidth;
  const circle = (values, radius) => {
    context.beginPath();
    context.arc(clip(toShare(across, values[across])) * size, (1 - clip(toShare(up, values[up]))) * size, radius * scale, 0, 7);
  };
  context.fillStyle = style("--paper");
  context.fillRect(0, 0, size, size);
  context.globalAlpha = 0.45;
  context.drawImage(map, 0, 0);
  context.globalAlpha = 1;
  if (showDots) {
    context.fillStyle = style("--accent");
    for (const draw of draws) {
      circle(draw, 2.5);
      context.fill();
    }
  }
  for (const [line, color] of [[6, "--paper"], [3, "--accent"]]) {
    context.lineWidth = line * scale;
    context.strokeStyle = style(color);
    circle(z, 9);
    context.stroke();
  }
}

// All of it ---------------------------------------------------------------------------------------------------------

let framed = false;

function requestFrame() {
  if (!framed) requestAnimationFrame(show);
  framed = true;
}

function show() {
  framed = false;
  paint(find("image"), decode(z));
  z.forEach((value, dimension) => {
    const row = find("code").children[dimension];
    row.querySelector("input").value = value;
    row.querySelector("output").textContent = written(value.toFixed(2));
    row.firstChild.classList.toggle("shown", z.length > 1 && (dimension === across || dimension === up));
  });
  if (z.length < 2) return;
  drawMap(performance.now() + 12);
  drawPlane();
  if (nextCell < cells * cells) requestFrame();
}

function setCode(values) {
  const moved = z.some((value, dimension) => values[dimension] !== value && dimension !== across && dimension !== up);
  values.forEach((value, dimension) => (z[dimension] = value));
  if (moved) nextCell = 0; // the map is one of the plane through z
  requestFrame();
}

function setPlane() {
  [across, up] = [Number(find("across").value), Number(find("up").value)];
  for (const id of ["across", "up"]) {
    const [least, most] = ranges[find(id).value];
    find(id).nextElementSibling.textContent = `${written(least)} to ${written(most)}`;
  }
  restartMap();
}

function fit() {
  const canvas = find("plane");
  const size = Math.round(canvas.clientWidth * devicePixelRatio);
  if (!size || size === canvas.width) return;
  canvas.width = canvas.height = map.width = map.height = size;
  cells = Math.min(15, Math.max(8, Math.round(canvas.clientWidth / 34)));
  restartMap();
}

function point(event) {
  const box = find("plane").getBoundingClientRect();
  const values = [...z];
  values[across] = toCode(across, clip((event.clientX - box.left) / box.width));
  values[up] = toCode(up, 1 - clip((event.clientY - box.top) / box.height));
  setCode(values);
}

function step(event) {
  const [right, above] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key] ?? [];
  if (right === undefined) return;
  event.preventDefault();
  const values = [...z];
  values[across] = toCode(across, clip(toShare(across, z[across]) + right / 60));
  values[up] = toCode(up, clip(toShare(up, z[up]) + above / 60));
  setCode(values);
}

function onPress(id, change) {
  find(id).addEventListener("click", () => {
    find(id).setAttribute("aria-pressed", find(id).getAttribute("aria-pressed") === "false");
    change();
    restartMap();
  });
}

for (const [dimension, [least, most]] of ranges.entries()) {
  const row = document.createElement("label");
  row.innerHTML = `<span>z<sub>${dimension + 1}</sub></span><input type="range" step="any"><output></output>`;
  const slider = row.querySelector("input");
  [slider.min, slider.max] = [least, most];
  slider.addEventListener("input", () => setCode(z.map((value, i) => (i === dimension ? Number(slider.value) : value))));
  find("code").append(row);
  for (const id of ["across", "up"]) find(id).append(new Option(`z${dimension + 1}`, dimension));
}
find("across").value = across;
find("up").value = up;
for (const id of ["across", "up"]) find(id).addEventListener("change", setPlane);
find("planar").hidden = z.length < 2;
find("invert").hidden = channels === 3;
find("image").style.aspectRatio = `${width} / ${height}`;
onPress("invert", () => (inverted = !inverted));
onPress("dots", () => (showDots = !showDots));
find("draw").addEventListener("click", () => setCode(draws[(taken = (taken + 1) % draws.length)]));
find("plane").addEventListener("pointerdown", (event) => {
  event.currentTarget.setPointerCapture(event.pointerId);
  point(event);
});
find("plane").addEventListener("pointermove", (event) => {
  if (event.currentTarget.hasPointerCapture(event.pointerId)) point(event);
});
find("plane").addEventListener("keydown", step);
dark.addEventListener("change", requestFrame);
new ResizeObserver(fit).observe(find("plane"));
setPlane();

// For those who script the page: the code, the image of a code, and the way to another code.
window.explorer = { decode: (code) => [...decode(code)], code: () => [...z], setCode };
