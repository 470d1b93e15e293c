// Runs once in the painter's element: a brush over an image, by pointer or by keyboard. The canvas has the image's
// own pixels; what is painted on it is read when a button of the page is pressed.
const surface = element.querySelector(".surface");
const image = element.querySelector("img");
const canvas = element.querySelector("canvas");
const cursor = element.querySelector(".cursor");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const PAINT = "#d6006e"; // without green, by which the server knows it
const BRUSH = 0.09; // radius, of the image's side
let at = { x: 0.5, y: 0.5 };
let isDown = false;

function clear() {
  pen.clearRect(0, 0, canvas.width, canvas.height);
}

function show(address) {
  surface.hidden = !address;
  if (!address) return clear();
  image.onload = () => {
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
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
    isDown = false;
  });
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.key in STEPS) {
    const [x, y] = STEPS[event.key];
    move(at.x + (x * BRUSH) / 2, at.y + (y * BRUSH) / 2);
  } else if (event.key === " ") {
    paint(at);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    clear();
  } else {
    return;
  }
  event.preventDefault();
});
element.querySelector(".clear").addEventListener("click", clear);

move(0.5, 0.5);
show(props.value);
watch("value", () => show(props.value));
