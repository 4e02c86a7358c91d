"use strict";
// The page: its controls, the loop that writes while the page stays responsive, and what it says.

// Milliseconds of writing between two frames: long enough to write fast, short enough to react.
const SLICE = 28;
// Of the milliseconds between two slices at most these count for the speed: a browser that shows
// another tab draws no frames, and the page waits.
const LONGEST_PAUSE = 100;

const HINT = "Select a character of the text to see what else was likely there.";
// What the probabilities are that the page shows, whatever the options of a text.
const JUDGE = "as the model sees it: at temperature 1, without top-k and top-p";
const NAMES = {"\n": "line end", " ": "space", "\t": "tab", "\r": "return"};

function byId(id) {
  return document.getElementById(id);
}

function made(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

const model = JSON.parse(byId("model").textContent);
// A copy of the weights as text is of no more use.
byId("model").remove();
const vocabulary = new Vocabulary(model);
const network = new Network(model);
const view = new TextView(byId("text"), {onMove: sayWhere, onChoose: showLikely});
// The text that is being written, or was last: its drawn tokens are `count`, and took `milliseconds`.
let run = {stopped: true, text: "", count: 0, milliseconds: 0};

// --- writing ---

// Wait for the next frame. Returns the milliseconds until it came.
async function nextFrame() {
  const start = performance.now();
  await new Promise((resolve) => requestAnimationFrame(resolve));
  return performance.now() - start;
}

function numberOr(id, otherwise) {
  return byId(id).value === "" ? otherwise : Number(byId(id).value);
}

// Return the text of a control with the line ends of the model. A textarea has "\n" for each of them.
function withLineEnds(text) {
  const onlyReturns = vocabulary.tokens.has("\r") && !vocabulary.tokens.has("\n");
  return onlyReturns ? text.replaceAll("\n", "\r") : text;
}

function givenPrime() {
  return withLineEnds(byId("prime").value);
}

function chosenOptions() {
  const topP = numberOr("top-p", 1);
  return {
    prime: givenPrime(),
    length: byId("endless").checked ? Infinity : numberOr("length", 0),
    temperature: numberOr("temperature", 1),
    topK: numberOr("top-k", null),
    topP: topP === 1 ? null : topP,
    mode: byId("mode").value,
    seed: numberOr("seed", 0),
    stopAt: withLineEnds(byId("stop-at").value.replaceAll("\\n", "\n")),
  };
}

// Return a function of one drawn piece of text after the other that returns whether `stopAt` is now
// complete. It keeps only as much of the text as it needs.
function stopper(stopAt) {
  let tail = "";
  return (piece) => {
    tail = (tail + piece).slice(-(stopAt.length + piece.length));
    return stopAt !== "" && tail.includes(stopAt);
  };
}

// Take tokens until the time of a slice is over. Returns them, and whether they were the last.
function takeSlice(tokens, own, isEnd) {
  const end = performance.now() + SLICE;
  const taken = [];
  while (performance.now() < end) {
    const {value, done} = tokens.next();
    if (done) return {taken, done};
    taken.push(value);
    own.text += value.text;
    if (value.given) continue;
    own.count++;
    if (isEnd(value.text)) return {taken, done: true};
  }
  return {taken, done: false};
}

async function write() {
  if (!checkPrime()) return;
  const options = chosenOptions();
  const own = {stopped: false, text: "", count: 0, milliseconds: 0};
  run.stopped = true;
  run = own;
  begin();
  const tokens = written(network, vocabulary, options);
  const isEnd = stopper(options.stopAt);
  while (!own.stopped) {
    const start = performance.now();
    const {taken, done} = takeSlice(tokens, own, isEnd);
    view.append(taken);
    showDropped();
    own.milliseconds += performance.now() - start;
    if (done) break;
    const pause = await nextFrame();
    own.milliseconds += Math.min(pause, LONGEST_PAUSE);
  }
  if (run === own) finish(own);
}

function begin() {
  view.clear();
  showDropped();
  hideLikely();
  byId("here").textContent = "";
  byId("status").textContent = "Writing …";
  byId("speed").textContent = "";
  byId("copied").textContent = "";
  byId("stop").setAttribute("aria-disabled", "false");
}

function finish(own) {
  own.stopped = true;
  const speed = Math.round(1000 * own.count / own.milliseconds);
  const unit = vocabulary.byBytes ? "bytes" : "characters";
  byId("status").textContent = `${own.count.toLocaleString("en")} ${unit} written.`;
  byId("speed").textContent = `${speed.toLocaleString("en")} ${unit} per second.`;
  byId("stop").setAttribute("aria-disabled", "true");
}

function showDropped() {
  byId("dropped").hidden = !view.dropped;
  byId("dropped").textContent =
    `The first ${view.dropped.toLocaleString("en")} characters are no longer shown; Copy text has them.`;
}

// Say which characters of the prime the model does not know. Returns whether the prime can be read.
function checkPrime() {
  const prime = givenPrime();
  const unknown = vocabulary.unknown(prime);
  let problem = "";
  if (unknown.length)
    problem = `Characters that the model has never seen: ${unknown.map(named).join(" ")}`;
  else if (!prime) problem = "The text must begin with at least one character.";
  byId("unknown").textContent = problem;
  byId("prime").setAttribute("aria-invalid", String(problem !== ""));
  return problem === "";
}

async function copy() {
  const {text} = run;
  // The number says how much of a text was copied that is still being written.
  let says = `${[...text].length.toLocaleString("en")} characters copied.`;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    says = "The browser does not allow this page to copy.";
  }
  byId("copied").textContent = says;
}

// --- what was likely ---

// Return a readable name of a character.
function named(character) {
  if (NAMES[character]) return NAMES[character];
  const point = `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  if (/^\p{M}/u.test(character)) return `◌${character}`;
  return /^[\p{C}\p{Z}]/u.test(character) ? point : character;
}

function nameOf(token) {
  if (!vocabulary.byBytes) return named(vocabulary.characters[token]);
  return token < 128 ? named(String.fromCharCode(token)) : `0x${token.toString(16).toUpperCase()}`;
}

function percent(chance) {
  if (chance < 0.0001) return "<0.01%";
  return `${(100 * chance).toFixed(chance < 0.0995 ? 2 : 1)}%`;
}

function sayWhere({text, tokens}) {
  const says = tokens[0].given ? "given" : `${bitsOf(tokens).toFixed(2)} bits of surprisal`;
  const value = view.unit === null ? "" : `, unit ${signed(tokens.at(-1).units[view.unit])}`;
  byId("here").textContent = `${named(text)}: ${says}${value}`;
}

function signed(value) {
  return (value / 127).toFixed(2).replace("-", "−");
}

function bar(token, chance, isDrawn) {
  const fill = made("span", "");
  fill.style.width = `${100 * chance}%`;
  const item = made("li", isDrawn ? "drawn" : "", made("code", "", nameOf(token)),
    made("span", "bar", fill), made("span", "number", percent(chance)));
  if (isDrawn) item.setAttribute("aria-current", "true");
  return item;
}

// Return the heading and the bars of one token.
function likelyList({token, given, bits, rank, likely, chances}) {
  const verb = given ? "given" : "drawn";
  const name = nameOf(token);
  const title = made("h2", "", `${[...name].length > 1 ? name : `“${name}”`} was ${verb}`);
  if (!likely) return [title, made("p", "faint", "Nothing comes before it, so nothing was predicted.")];
  const place = rank === 1 ? "the most likely" : `number ${rank} by probability`;
  const says = `${bits.toFixed(2)} bits of surprisal, ${place}, ${JUDGE}`;
  const bars = likely.map((other, index) => bar(other, chances[index], other === token));
  if (!likely.includes(token)) bars.push(bar(token, 2 ** -bits, true));
  return [title, made("p", "faint", says), made("ol", "", ...bars)];
}

function showLikely({tokens}) {
  byId("likely").replaceChildren(...tokens.flatMap(likelyList));
  byId("detail").classList.add("open");
}

function hideLikely() {
  byId("likely").replaceChildren(made("p", "faint", HINT));
  byId("detail").classList.remove("open");
  view.unchoose();
}

function closeLikely() {
  hideLikely();
  byId("text").focus();
}

// --- colours ---

// Return the number of the shown unit, from 1. A number that no unit has is replaced in the box.
function shownUnit() {
  const typed = numberOr("unit", 1);
  const unit = Math.min(Math.max(Math.round(typed), 1), network.size);
  if (unit !== typed) byId("unit").value = unit;
  return unit;
}

function showColours() {
  const byUnit = document.querySelector("input[name=view]:checked").value === "unit";
  const unit = shownUnit() - 1;
  byId("unit-fields").hidden = !byUnit;
  view.showUnit(byUnit ? Number(byId("layer").value) * network.size + unit : null);
  drawScale(byUnit);
  if (view.cursor) sayWhere(view.cursor);
}

function drawScale(byUnit) {
  byId("scale").className = byUnit ? "unit" : "surprisal";
  byId("scale-low").textContent = byUnit ? "−1" : "expected";
  byId("scale-high").textContent = byUnit ? "+1" : "surprising";
  byId("scale-says").textContent = byUnit ? shownQuantity()
    : "(a step: 1 bit, half the probability; the last: 8 bits or more)";
  const levels = Array.from({length: byUnit ? 2 * LEVELS + 1 : LEVELS + 1},
    (_, index) => (byUnit ? index - LEVELS : index));
  byId("scale-colours").replaceChildren(...levels.map((level) => {
    const patch = made("span", "");
    patch.dataset.level = level;
    return patch;
  }));
}

function shownQuantity() {
  if (model.cell === "lstm") return "(tanh of the unit's cell after the character)";
  const ofUnit = model.cell === "rnn" && model.activation === "relu" ? "tanh of the unit" : "the unit";
  return `(${ofUnit} after the character)`;
}

// --- the controls ---

function showSliders() {
  for (const id of ["temperature", "top-p"])
    byId(`${id}-value`).textContent = Number(byId(id).value).toFixed(2);
  if (byId("top-p").value === "1") byId("top-p-value").textContent = "1 (all)";
}

function pickUnit() {
  byId("layer").value = Math.floor(Math.random() * network.cells.length);
  byId("unit").value = 1 + Math.floor(Math.random() * network.size);
  showColours();
}

function connect() {
  byId("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    write();
  });
  // The browser reports an invalid option at the option itself, which must be visible.
  byId("controls").addEventListener("invalid", ({target}) => {
    target.closest("details")?.setAttribute("open", "");
  }, {capture: true});
  byId("prime").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("controls").requestSubmit();
  });
  byId("prime").addEventListener("input", checkPrime);
  byId("controls").addEventListener("input", showSliders);
  byId("endless").addEventListener("change", () => {
    byId("length").disabled = byId("endless").checked;
  });
  byId("new-seed").addEventListener("click", () => {
    byId("seed").value = Math.floor(Math.random() * 1e6);
  });
  byId("stop").addEventListener("click", () => { run.stopped = true; });
  byId("copy").addEventListener("click", copy);
  byId("close").addEventListener("click", closeLikely);
  document.addEventListener("keydown", ({key, target}) => {
    const isOpen = byId("detail").classList.contains("open");
    if (key === "Escape" && isOpen && !byId("controls").contains(target)) closeLikely();
  });
  byId("random-unit").addEventListener("click", pickUnit);
  for (const element of [...document.getElementsByName("view"), byId("layer"), byId("unit")])
    element.addEventListener("input", showColours);
  // An empty box is left empty until the reader has finished typing.
  byId("unit").addEventListener("change", () => { byId("unit").value = shownUnit(); });
}

network.cells.forEach((_, layer) => byId("layer").add(new Option(layer + 1, layer)));
byId("unit").max = network.size;
byId("prime").value = model.prime;
connect();
showSliders();
showColours();
hideLikely();
