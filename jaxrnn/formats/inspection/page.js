"use strict";
// Colours the text by the values of one unit, and shows the value at the character under the pointer,
// or at the one chosen by the arrow keys.

// data: {
//   text, labels: {record: its name for readers},
//   groups: [{record, layer, units: [number], scale, values: base64 of int8 [units, characters]}],
//   features: [{name, units: [{record, layer, unit, r_chosen, r}]}], first: {record, layer, unit},
// }
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const text = byId("text");
const letters = [...data.text];
// Steps of a value on each side of zero, colours on each side, and characters after which a new block
// begins at the next line.
const STEPS = 127;
const COLOURS = 20;
const BLOCK = 4096;

// What is shown: a group, the number of a unit in it, and the values of that unit in steps.
let group = null;
let unit = 0;
let steps = null;
// The largest value of the scale, in steps.
let most = STEPS;
// The marked character, and whether its value is shown, which a pointer or a key begins.
let here = 0;
let shownValue = false;

// --- the text ---

const characters = letters.map((letter) => {
  const element = document.createElement("i");
  element.textContent = letter;
  return element;
});
const places = new Map(characters.map((element, place) => [element, place]));
// The first character of each line, and the line of each character.
const starts = [0];
const lines = letters.map((letter, place) => {
  if (letter === "\n") starts.push(place + 1);
  return starts.length - (letter === "\n" ? 2 : 1);
});
if (starts.at(-1) === letters.length) starts.pop();

for (let begin = 0; begin < letters.length;) {
  let end = Math.min(begin + BLOCK, letters.length);
  while (end < letters.length && letters[end - 1] !== "\n") end += 1;
  const block = document.createElement("div");
  block.append(...characters.slice(begin, end));
  text.append(block);
  begin = end;
}

// --- units ---

function valuesOf(wanted) {
  wanted.decoded ??= Int8Array.from(atob(wanted.values), (byte) => byte.charCodeAt(0));
  const begin = wanted.units.indexOf(unit) * letters.length;
  return wanted.decoded.subarray(begin, begin + letters.length);
}

function select(record, layer, number) {
  const same = data.groups.filter((each) => each.record === record);
  group = same.find((each) => each.layer === layer) ?? same[0];
  // The nearest unit of those in the page.
  unit = group.units.reduce(
    (best, each) => (Math.abs(each - number) < Math.abs(best - number) ? each : best));
  steps = valuesOf(group);
  fill("layer", same.map((each) => [each.layer, each.layer]), group.layer);
  fill("unit", group.units.map((each) => [each, each]), unit);
  byId("record").value = record;
  draw();
}

function fill(id, entries, chosen) {
  const list = byId(id);
  list.replaceChildren(...entries.map(([value, label]) => new Option(label, value)));
  list.value = chosen;
}

function shown(number) {
  return number.toFixed(2).replace("-", "−");
}

function draw() {
  const largest = steps.reduce((most, step) => Math.max(most, Math.abs(step)), 1);
  most = byId("stretch").checked ? largest : STEPS;
  const classes = Array.from({length: 2 * STEPS + 1}, (_, index) => {
    const step = index - STEPS;
    const colour = Math.min(COLOURS, Math.round(COLOURS * Math.abs(step) / most));
    return colour === 0 ? "" : (step < 0 ? "m" : "p") + colour;
  });
  characters.forEach((element, place) => { element.className = classes[steps[place] + STEPS]; });
  const end = group.scale * most / STEPS;
  byId("low").textContent = shown(-end);
  byId("high").textContent = `+${shown(end)}`;
  byId("shown").textContent = `${data.labels[group.record]}, layer ${group.layer}, unit ${unit}`;
  for (const {button, record, layer, number} of buttons) {
    const pressed = record === group.record && layer === group.layer && number === unit;
    button.setAttribute("aria-pressed", pressed);
  }
  mark(here);
  if (shownValue) show(here);
}

const buttons = [];
for (const feature of data.features) {
  const name = document.createElement("dt");
  name.textContent = feature.name;
  const list = document.createElement("dd");
  for (const {record, layer, unit: number, r_chosen, r} of feature.units) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${data.labels[record]} ${layer}:${number}, r = ${shown(r)}`;
    button.title = `layer ${layer}, unit ${number}; r where it was chosen: ${shown(r_chosen)}`;
    button.addEventListener("click", () => select(record, layer, number));
    buttons.push({button, record, layer, number});
    list.append(button);
  }
  byId("features").append(name, list);
}

// --- one character ---

function named(letter) {
  const names = {"\n": "line break", " ": "space", "\t": "tab", "\r": "carriage return"};
  return names[letter] ?? `“${letter}”`;
}

function mark(place) {
  characters[here].classList.remove("here");
  here = Math.min(Math.max(place, 0), letters.length - 1);
  characters[here].classList.add("here");
}

function show(place) {
  shownValue = true;
  mark(place);
  const value = group.scale * steps[here] / STEPS;
  byId("here").textContent = `Line ${lines[here] + 1}, ${named(letters[here])}: ${shown(value)}`;
}

// The character at the same place of the line above or below.
function beside(step) {
  const line = lines[here] + step;
  if (line < 0 || line >= starts.length) return here;
  const end = (starts[line + 1] ?? letters.length) - 1;
  return Math.min(starts[line] + here - starts[lines[here]], end);
}

const MOVES = {
  ArrowLeft: () => here - 1,
  ArrowRight: () => here + 1,
  ArrowUp: () => beside(-1),
  ArrowDown: () => beside(1),
  Home: () => starts[lines[here]],
  End: () => (starts[lines[here] + 1] ?? letters.length) - 1,
};

text.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  show(move());
  characters[here].scrollIntoView({block: "nearest", inline: "nearest"});
});
for (const kind of ["pointerover", "click"]) {
  text.addEventListener(kind, (event) => {
    const place = places.get(event.target);
    if (place !== undefined) show(place);
  });
}
text.addEventListener("focus", () => show(here));

// --- begin ---

fill("record", Object.entries(data.labels), data.first.record);
byId("record").addEventListener("change", () => select(byId("record").value, group.layer, unit));
byId("layer").addEventListener(
  "change", () => select(group.record, Number(byId("layer").value), unit));
byId("unit").addEventListener(
  "change", () => select(group.record, group.layer, Number(byId("unit").value)));
byId("stretch").addEventListener("change", draw);
select(data.first.record, data.first.layer, data.first.unit);
