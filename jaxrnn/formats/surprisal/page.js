"use strict";
// Shows the bits of the character under the pointer, or of the one chosen by the arrow keys.

const text = document.getElementById("text");
const here = document.getElementById("here");
const mark = document.getElementById("mark");
// Units per bit of the stored numbers, which have two digits in base 36.
const UNITS = 50;

// A place is {run, at, offset, length}: the element, and its character by number and by UTF-16 offset.
function places(run) {
  let offset = 0;
  return Array.from(run.textContent, (character, at) => {
    const place = {run, at, offset, length: character.length};
    offset += character.length;
    return place;
  });
}

function rangeOf(place) {
  const range = document.createRange();
  range.setStart(place.run.firstChild, place.offset);
  range.setEnd(place.run.firstChild, place.offset + place.length);
  return range;
}

function bitsOf(place) {
  return parseInt(place.run.dataset.b.substr(2 * place.at, 2), 36) / UNITS;
}

function named(character) {
  const names = {"\n": "line break", " ": "space", "\t": "tab", "\r": "carriage return"};
  return names[character] ?? `“${character}”`;
}

function show(place) {
  const range = rangeOf(place);
  const bits = bitsOf(place);
  const percent = (100 * 2 ** -bits).toPrecision(2);
  here.textContent = `${named(range.toString())}: ${bits.toFixed(2)} bits, probability ${+percent} %`;
  const box = [...range.getClientRects()].at(-1) ?? range.getBoundingClientRect();
  const page = document.body.getBoundingClientRect();
  Object.assign(mark.style, {
    left: `${box.left - page.left}px`, top: `${box.top - page.top}px`,
    width: `${Math.max(box.width, 4)}px`, height: `${box.height}px`,
  });
  mark.hidden = false;
}

// --- the pointer ---

function pointed(x, y) {
  const run = document.elementFromPoint(x, y)?.closest("#text i");
  if (!run) return null;
  const hit = (box) => box.left <= x && x < box.right && box.top <= y && y < box.bottom;
  return places(run).find((place) => [...rangeOf(place).getClientRects()].some(hit)) ?? null;
}

text.addEventListener("pointermove", (event) => {
  const place = pointed(event.clientX, event.clientY);
  if (place) show(place);
});

// --- the keyboard ---

let chosen = null;

function runBeside(run, step) {
  const sibling = step > 0 ? "nextElementSibling" : "previousElementSibling";
  const end = step > 0 ? "firstElementChild" : "lastElementChild";
  return run[sibling] ?? run.parentElement[sibling]?.[end] ?? null;
}

function beside(place, step) {
  const inside = places(place.run)[place.at + step];
  if (inside) return inside;
  const run = runBeside(place.run, step);
  return run && places(run).at(step > 0 ? 0 : -1);
}

function isBreak(place) {
  return rangeOf(place).toString() === "\n";
}

// The first character of the line of a place, or its last one.
function endOfLine(place, step) {
  for (;;) {
    const next = beside(place, step);
    if (!next || (step > 0 ? isBreak(place) : isBreak(next))) return place;
    place = next;
  }
}

const MOVES = {
  ArrowRight: (place) => beside(place, 1),
  ArrowLeft: (place) => beside(place, -1),
  ArrowDown: (place) => beside(endOfLine(place, 1), 1),
  ArrowUp: (place) => {
    const before = beside(endOfLine(place, -1), -1);
    return before && endOfLine(before, -1);
  },
  Home: (place) => endOfLine(place, -1),
  End: (place) => endOfLine(place, 1),
};

function choose(place) {
  chosen = place;
  place.run.scrollIntoView({block: "nearest"});
  show(place);
}

text.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const place = chosen && move(chosen);
  if (place) choose(place);
});

text.addEventListener("focus", () => {
  const run = text.querySelector("i");
  if (!chosen && run) choose(places(run)[0]);
});

text.addEventListener("click", (event) => {
  const place = pointed(event.clientX, event.clientY);
  if (place) choose(place);
});
