"use strict";
// The text on the page: one element for each character, in one block for each line, with a colour, a
// cursor and a selection.

// More characters would make the page slow. Those at the beginning are dropped.
const MOST_CHARACTERS = 20000;
const LEVELS = 8;

// Return the level of a surprisal: each bit is one, which halves the probability.
function surprisalLevel(bits) {
  return Math.min(Math.floor(bits), LEVELS);
}

// Return the level of a unit from its number in steps of 1/127.
function unitLevel(value) {
  return Math.round(LEVELS * value / 127);
}

class TextView {
  // `onMove` and `onChoose` are called with a character of the text: {element, text, tokens}, where
  // `tokens` are those of `written` that make it up, one unless tokens are bytes.
  constructor(element, {onMove, onChoose}) {
    this.element = element;
    this.onMove = onMove;
    this.onChoose = onChoose;
    this.unit = null;
    this.clear();
    element.addEventListener("click", (event) => this.clicked(event));
    element.addEventListener("keydown", (event) => this.pressed(event));
  }

  clear() {
    this.element.replaceChildren();
    this.characters = [];
    this.pending = [];
    this.dropped = 0;
    this.line = null;
    this.cursor = this.chosen = null;
  }

  // --- growing ---

  // Add tokens at the end. The view follows the end of the text unless the reader has scrolled away.
  append(tokens) {
    const {scrollHeight, scrollTop, clientHeight} = this.element;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40;
    for (const token of tokens) this.add(token);
    this.dropBeginning();
    if (atEnd) this.element.scrollTop = this.element.scrollHeight;
  }

  add(token) {
    this.pending.push(token);
    if (!token.text) return;
    const character = {text: token.text, tokens: this.pending, element: document.createElement("span")};
    this.pending = [];
    character.element.textContent = character.text;
    if (token.given) character.element.classList.add("given");
    if (character.text === "\n") character.element.classList.add("end");
    this.colour(character);
    this.place(character);
    this.characters.push(character);
  }

  place({element, text}) {
    if (!this.line) {
      this.line = document.createElement("div");
      this.line.className = "line";
      this.element.append(this.line);
    }
    this.line.append(element);
    if (text === "\n") this.line = null;
  }

  dropBeginning() {
    const excess = this.characters.length - MOST_CHARACTERS;
    if (excess <= 0) return;
    for (const character of this.characters.splice(0, excess)) {
      const line = character.element.parentElement;
      character.element.remove();
      if (!line.firstChild && line !== this.line) line.remove();
      if (this.cursor === character) this.cursor = null;
      if (this.chosen === character) this.chosen = null;
    }
    this.dropped += excess;
  }

  // --- colours ---

  // Colour by surprisal (null), or by unit number `unit` of all layers, counted from 0.
  showUnit(unit) {
    this.unit = unit;
    this.element.className = unit === null ? "surprisal" : "unit";
    this.characters.forEach((character) => this.colour(character));
  }

  colour({element, tokens}) {
    if (this.unit !== null) element.dataset.level = unitLevel(tokens.at(-1).units[this.unit]);
    else if (tokens[0].given) delete element.dataset.level;
    else element.dataset.level = surprisalLevel(bitsOf(tokens));
  }

  // --- cursor and selection ---

  clicked(event) {
    const index = this.characters.findIndex(({element}) => element === event.target);
    if (index < 0) return;
    this.moveTo(index);
    this.choose();
  }

  pressed(event) {
    const here = this.characters.indexOf(this.cursor);
    const last = this.characters.length - 1;
    if (last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const targets = {
      ArrowLeft: () => here - 1, ArrowRight: () => here + 1, Home: () => 0, End: () => last,
      ArrowUp: () => this.neighbour(here, -1), ArrowDown: () => this.neighbour(here, 1),
    };
    if (targets[event.key]) this.moveTo(Math.min(Math.max(targets[event.key](), 0), last));
    else if (event.key === "Enter" || event.key === " ") this.choose();
    else return;
    event.preventDefault();
  }

  moveTo(index) {
    this.cursor?.element.classList.remove("cursor");
    this.cursor = this.characters[index];
    this.cursor.element.classList.add("cursor");
    this.cursor.element.scrollIntoView({block: "nearest", inline: "nearest"});
    this.onMove(this.cursor);
  }

  choose() {
    if (!this.cursor) return;
    this.chosen?.element.classList.remove("chosen");
    this.chosen = this.cursor;
    this.chosen.element.classList.add("chosen");
    this.onChoose(this.chosen);
  }

  unchoose() {
    this.chosen?.element.classList.remove("chosen");
    this.chosen = null;
  }

  // Return the index of the character at the same column of the line above (-1) or below (1).
  neighbour(here, direction) {
    if (here < 0) return 0;
    const own = this.characters[here].element;
    const line = own.parentElement;
    const other = direction < 0 ? line.previousElementSibling : line.nextElementSibling;
    if (!other) return here;
    const column = [...line.children].indexOf(own);
    const element = other.children[Math.min(column, other.children.length - 1)];
    return this.characters.findIndex((character) => character.element === element);
  }
}

// Return the surprisal of a character, the sum over its tokens.
function bitsOf(tokens) {
  return tokens.reduce((sum, token) => sum + (token.bits ?? 0), 0);
}
