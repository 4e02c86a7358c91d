"use strict";
// Text from the network, one token after the other, as `jaxrnn.stream` draws it: each token with what
// the page shows about it.

// Number of likely tokens that are kept for each place of the text.
const LIKELY = 10;

// --- the vocabulary ---

class Vocabulary {
  constructor(model) {
    this.byBytes = model.by_bytes;
    this.characters = model.characters.map((point) => String.fromCodePoint(point));
    this.tokens = new Map(this.characters.map((character, token) => [character, token]));
    this.whitespace = new Set(model.whitespace);
  }

  // Return the characters of a text, each once, that have no token.
  unknown(text) {
    if (this.byBytes) return [];
    return [...new Set(text)].filter((character) => !this.tokens.has(character));
  }

  encode(text) {
    if (this.byBytes) return [...new TextEncoder().encode(text)];
    return [...text].map((character) => this.tokens.get(character));
  }

  // Return a function of one token after the other that returns the text which the token completes. A
  // byte inside of a character completes none; bytes that are not UTF-8 become U+FFFD.
  decoder() {
    if (!this.byBytes) return (token) => this.characters[token];
    const utf8 = new TextDecoder("utf-8", {ignoreBOM: true});
    return (token) => utf8.decode(Uint8Array.of(token), {stream: true});
  }
}

// --- drawing ---

function indexOfLargest(numbers) {
  let best = 0;
  for (let index = 1; index < numbers.length; index++)
    if (numbers[index] > numbers[best]) best = index;
  return best;
}

// Return the logits over the temperature, with the highest at 0, in float32.
function scaled(logits, temperature) {
  const highest = Math.fround(logits[indexOfLargest(logits)]);
  const divisor = Math.fround(Math.min(Math.max(temperature, 1e-30), 1e30));
  return Float32Array.from(logits, (logit) =>
    Math.fround(Math.fround(logit) - highest) / divisor);
}

// Return the logits with -Infinity for what top-k and top-p leave out. Of the k most likely tokens those
// stay that are needed for a probability of p, and those that are as likely as one that stays.
function truncated(logits, topK, topP) {
  const ordered = logits.slice().sort().reverse().subarray(0, topK);
  const weights = Array.from(ordered, (logit) => Math.exp(logit - ordered[0]));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let kept = 1;
  for (let before = weights[0]; kept < ordered.length && before / total < topP; kept++)
    before += weights[kept];
  const least = ordered[kept - 1];
  return logits.map((logit) => (logit >= least ? logit : -Infinity));
}

// Return the next token. `last` is the token before it, `key` the key of its position.
function choose(logits, last, key, options, vocabulary) {
  const inWord = options.mode === "after-space" && !vocabulary.whitespace.has(last);
  if (options.mode === "argmax" || inWord) return indexOfLargest(logits.map(Math.fround));
  let candidates = scaled(logits, options.temperature);
  const {topK, topP} = options;
  if (topK !== null || topP !== null)
    candidates = truncated(candidates, topK ?? candidates.length, Math.fround(topP ?? 1));
  const noise = gumbels(key, candidates.length);
  return indexOfLargest(candidates.map((logit, index) => logit + noise[index]));
}

// --- what the page shows about a token ---

// Return the indices of the largest numbers, the largest first.
function largest(numbers, count) {
  const found = [];
  for (let index = 0; index < numbers.length; index++) {
    if (found.length === count && numbers[index] <= numbers[found[count - 1]]) continue;
    let place = found.length;
    while (place > 0 && numbers[found[place - 1]] < numbers[index]) place--;
    found.splice(place, 0, index);
    if (found.length > count) found.pop();
  }
  return found;
}

// Return how the model itself, at temperature 1 and without truncation, sees a token: its surprisal in
// bits, its rank (1 for the most likely), and the most likely tokens with their probabilities.
function judged(logits, token) {
  const likely = largest(logits, LIKELY);
  const highest = logits[likely[0]];
  let total = 0, rank = 1;
  for (let index = 0; index < logits.length; index++) {
    total += Math.exp(logits[index] - highest);
    if (logits[index] > logits[token]) rank++;
  }
  const chances = Float32Array.from(likely, (index) => Math.exp(logits[index] - highest) / total);
  const bits = (highest + Math.log(total) - logits[token]) / Math.LN2;
  return {bits, rank, likely, chances};
}

// Return the numbers of all units, layer by layer, in steps of 1/127.
function unitsOf(network) {
  const units = new Int8Array(network.cells.length * network.size);
  network.cells.forEach((cell, layer) => {
    for (let unit = 0; unit < network.size; unit++)
      units[layer * network.size + unit] = Math.round(127 * cell.shown[unit]);
  });
  return units;
}

// Yield the tokens of the prime and then `length` drawn ones: {token, text, given, units, bits, rank,
// likely, chances}. The last four are missing for the first token, which nothing precedes.
//
// options: {prime, length, temperature, topK, topP, mode, seed}; topK and topP may be null.
function* written(network, vocabulary, options) {
  network.reset();
  const textOf = vocabulary.decoder();
  const prime = vocabulary.encode(options.prime);
  const row = foldIn(keyOf(options.seed), 0);
  let last = null;
  for (let position = 0; position < prime.length + options.length; position++) {
    const given = position < prime.length;
    const token = given ? prime[position]
      : choose(network.logits, last, foldIn(row, position), options, vocabulary);
    const judgement = position ? judged(network.logits, token) : {};
    network.step(token);
    yield {token, text: textOf(token), given, units: unitsOf(network), ...judgement};
    last = token;
  }
}
