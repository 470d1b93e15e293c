// Runs once in the painter's element: a brush over an image, by pointer or by keyboard. The canvas has the image's
// own pixels; what is painted on it is read when a button of the page is pressed.
const surface = element.querySelector(".surface");
const image = element.querySelector("img");
const canvas = element.querySelector("canvas");
const cursor = element.querySelector(".cursor");
const status = element.querySelector("[role=status]");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const PAINT = "#d6006e"; // without green, by which the server knows it
const BRUSH = 0.09; // radius, of the image's side
let at = { x: 0.5, y: 0.5 };
let isDown = false;

const percent = (part) => `${Math.round(100 * part)} %`;

// The share of a part of the canvas that is painted.
function covered(x, y, width, height) {
  const pixels = pen.getImageData(x, y, width, height).data;
  let count = 0;
  for (let i = 3; i < pixels.length; i += 4) count += pixels[i] > 127;
  return count / (width * height);
}

function amount() {
  const share = covered(0, 0, canvas.width, canvas.height);
  if (!share) return "Nothing is painted.";
  return `${share < 0.01 ? "Less than 1 %" : percent(share)} of the image is painted.`;
}

function place() {
  const [x, y] = [at.x * canvas.width, at.y * canvas.height];
  const isPainted = covered(Math.min(x, canvas.width - 1), Math.min(y, canvas.height - 1), 1, 1) > 0;
  return `Brush ${percent(at.x)} from the left, ${percent(at.y)} from the top${isPainted ? ", painted" : ""}.`;
}

function say(...sentences) {
  status.textContent = sentences.join(" ");
}

function clear() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  say(amount());
}

function show(address) {
  surface.parentElement.hidden = !address;
  if (!address) return clear();
  image.onload = () => {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    say("Paint over the part to replace.");
  };
  image.src = address;
}

function move(x, y) {
  at = { x: Math.min(Math.max(x, 0), 1), y: Math.min(Math.max(y, 0), 1) };
  cursor.style.left = `${100 * at.x}%`;
  cursor.style.top = `${100 * at.y}%`;
}

function paint(from) {
  pen.strokeStyle = PAINT;
  pen.lineCap = "round";
  pen.lineWidth = 2 * BRUSH * canvas.width;
  pen.beginPath();
  pen.moveTo(from.x * canvas.width, from.y * canvas.height);
  pen.lineTo(at.x * canvas.width, at.y * canvas.height + 0.01);
  pen.stroke();
}

function follow(event) {
  const box = canvas.getBoundingClientRect();
  const from = isDown ? at : null;
  move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  if (isDown) paint(from);
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  follow(event);
  isDown = true;
  paint(at);
});
canvas.addEventListener("pointermove", follow);
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (isDown) say(amount());
    isDown = false;
  });
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.key in STEPS) {
    const [x, y] = STEPS[event.key];
    const from = at;
    move(at.x + (x * BRUSH) / 2, at.y + (y * BRUSH) / 2);
    if (event.shiftKey) paint(from);
    say(place(), ...(event.shiftKey ? [amount()] : []));
  } else if (event.key === " ") {
    paint(at);
    say(amount(), place());
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});
canvas.addEventListener("focus", () => {
  if (canvas.matches(":focus-visible")) say(place(), amount());
});
element.querySelector(".clear").addEventListener("click", clear);

move(0.5, 0.5);
show(props.value);
watch("value", () => show(props.value));
