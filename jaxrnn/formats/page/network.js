"use strict";
// The char-RNN: its weights as typed arrays, and one step over one character.
//
// Weights are kept in float32; states and sums are in float64, which costs no time in JavaScript.
// Matrices lie row by row. A matrix product adds up rows, eight at a time, so that the sums are loaded
// and stored once for eight products; `padded` makes the number of rows a multiple of eight.

const ROWS = 8;

// --- the weights ---

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < bytes.length; index++) bytes[index] = text.charCodeAt(index);
  return bytes;
}

function float32Of(base64) {
  return new Float32Array(bytesOf(base64).buffer);
}

// The number that has the 16 bits of a float16.
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}

// Return the numbers of an array of the model, which `weights.py` has encoded.
function decode(array) {
  if (array.type === "float32") return float32Of(array.data);
  if (array.type === "float16")
    return Float32Array.from(new Uint16Array(bytesOf(array.data).buffer), fromHalf);
  const columns = array.shape[1];
  const scales = float32Of(array.scales);
  const scaleOf = array.scaled === "rows"
    ? (index) => scales[Math.floor(index / columns)]
    : (index) => scales[index % columns];
  return Float32Array.from(new Int8Array(bytesOf(array.data).buffer),
    (number, index) => number * scaleOf(index));
}

function paddedSize(rows) {
  return Math.ceil(rows / ROWS) * ROWS;
}

// Return a matrix with rows of zeros below it.
function padded(matrix, columns) {
  const result = new Float32Array(paddedSize(matrix.length / columns) * columns);
  result.set(matrix);
  return result;
}

// Return columns `from` to `to` of a matrix.
function columnsOf(matrix, columns, from, to) {
  const rows = matrix.length / columns;
  const result = new Float32Array(rows * (to - from));
  for (let row = 0; row < rows; row++)
    result.set(matrix.subarray(row * columns + from, row * columns + to), row * (to - from));
  return result;
}

function transposed(matrix, columns) {
  const rows = matrix.length / columns;
  return Float32Array.from(matrix, (_, at) => matrix[(at % rows) * columns + Math.floor(at / rows)]);
}

// --- the arithmetic ---

// Add input @ matrix to the sums. The input is as long as the padded matrix is high.
function addProduct(sums, input, matrix) {
  const n = sums.length;
  for (let row = 0; row < input.length; row += ROWS) {
    const a = input[row], b = input[row + 1], c = input[row + 2], d = input[row + 3];
    const e = input[row + 4], f = input[row + 5], g = input[row + 6], h = input[row + 7];
    for (let i = 0, at = row * n; i < n; i++, at++) {
      sums[i] += a * matrix[at] + b * matrix[at + n] + c * matrix[at + 2 * n]
        + d * matrix[at + 3 * n] + e * matrix[at + 4 * n] + f * matrix[at + 5 * n]
        + g * matrix[at + 6 * n] + h * matrix[at + 7 * n];
    }
  }
}

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}

// --- the cells ---
// Each has `sums`, into which the caller writes the input's part of the gates, and `step`, which then
// changes `hidden`. `states` are the arrays that are zero at the beginning of a text, and `shown` the
// numbers from -1 to 1 by which the page colours the text.

const ACTIVATIONS = {tanh: Math.tanh, relu: (x) => Math.max(x, 0), sigmoid};

class RNN {
  constructor(weights, size, {activation}) {
    this.size = size;
    this.activation = ACTIVATIONS[activation];
    this.matrix = padded(weights.w_h, size);
    this.sums = new Float64Array(size);
    this.hidden = new Float64Array(paddedSize(size));
    this.states = [this.hidden];
    // A unit of ReLU has no upper limit.
    this.shown = activation === "relu" ? new Float64Array(size) : this.hidden;
  }

  step() {
    addProduct(this.sums, this.hidden, this.matrix);
    for (let unit = 0; unit < this.size; unit++) {
      this.hidden[unit] = this.activation(this.sums[unit]);
      if (this.shown !== this.hidden) this.shown[unit] = Math.tanh(this.hidden[unit]);
    }
  }
}

class LSTM {
  constructor(weights, size) {
    this.size = size;
    this.matrix = padded(weights.w_h, 4 * size);
    // The peepholes of i, f and o; zeros without them.
    this.peepholes = weights.w_c ?? new Float32Array(3 * size);
    this.sums = new Float64Array(4 * size);
    this.hidden = new Float64Array(paddedSize(size));
    this.cell = new Float64Array(size);
    this.states = [this.hidden, this.cell];
    this.shown = new Float64Array(size);
  }

  step() {
    const {size, sums, cell, peepholes} = this;
    addProduct(sums, this.hidden, this.matrix);
    for (let unit = 0; unit < size; unit++) {
      const before = cell[unit];
      const i = sigmoid(sums[unit] + peepholes[unit] * before);
      const f = sigmoid(sums[size + unit] + peepholes[size + unit] * before);
      const g = Math.tanh(sums[2 * size + unit]);
      const after = f * before + i * g;
      const o = sigmoid(sums[3 * size + unit] + peepholes[2 * size + unit] * after);
      cell[unit] = after;
      this.shown[unit] = Math.tanh(after);
      this.hidden[unit] = o * this.shown[unit];
    }
  }
}

class GRU {
  constructor(weights, size) {
    this.size = size;
    this.gateMatrix = padded(columnsOf(weights.w_h, 3 * size, 0, 2 * size), 2 * size);
    this.candidateMatrix = padded(columnsOf(weights.w_h, 3 * size, 2 * size, 3 * size), size);
    // Only a GRU that resets after the product has a second bias.
    this.bias = weights.b_h;
    this.sums = new Float64Array(3 * size);
    this.gates = this.sums.subarray(0, 2 * size);
    this.candidate = this.sums.subarray(2 * size);
    this.product = new Float64Array(size);
    this.hidden = this.shown = new Float64Array(paddedSize(size));
    this.states = [this.hidden];
    this.kept = new Float64Array(paddedSize(size));
  }

  step() {
    const {size, gates, candidate, hidden} = this;
    addProduct(gates, hidden, this.gateMatrix);
    for (let index = 0; index < 2 * size; index++) gates[index] = sigmoid(gates[index]);
    if (this.bias) this.resetAfter();
    else this.resetBefore();
    for (let unit = 0; unit < size; unit++) {
      const z = gates[unit];
      hidden[unit] = (1 - z) * Math.tanh(candidate[unit]) + z * hidden[unit];
    }
  }

  resetBefore() {
    const {size, gates, hidden, kept} = this;
    for (let unit = 0; unit < size; unit++) kept[unit] = gates[size + unit] * hidden[unit];
    addProduct(this.candidate, kept, this.candidateMatrix);
  }

  resetAfter() {
    const {size, gates, candidate, product} = this;
    product.set(this.bias);
    addProduct(product, this.hidden, this.candidateMatrix);
    for (let unit = 0; unit < size; unit++) candidate[unit] += gates[size + unit] * product[unit];
  }
}

const CELLS = {rnn: RNN, lstm: LSTM, gru: GRU};

// --- the network ---

// The input of the first layer for every character, its projected embedding. A character is projected
// when it is needed for the first time.
class InputTable {
  constructor(embedding, weights, width) {
    this.width = width;
    this.columns = weights.b.length;
    this.embedding = embedding;
    this.matrix = embedding ? padded(weights.w_x, this.columns) : weights.w_x;
    this.bias = weights.b;
    this.rows = [];
  }

  row(token) {
    this.rows[token] ??= Float32Array.from(this.embedding ? this.projected(token) : this.column(token));
    return this.rows[token];
  }

  projected(token) {
    const input = new Float64Array(paddedSize(this.width));
    input.set(this.embedding.subarray(token * this.width, (token + 1) * this.width));
    const sums = Float64Array.from(this.bias);
    addProduct(sums, input, this.matrix);
    return sums;
  }

  // A one-hot character selects a row of the matrix.
  column(token) {
    return this.bias.map((number, index) => number + this.matrix[token * this.columns + index]);
  }
}

class Network {
  constructor(model) {
    const size = model.hidden_size;
    const embedding = model.embedding && decode(model.embedding);
    const layers = model.layers.map((layer) => Object.fromEntries(
      Object.entries(layer).map(([name, array]) => [name, decode(array)])));
    this.size = size;
    this.table = new InputTable(embedding, layers[0], model.embedding_size);
    this.inputs = layers.map(({w_x, b}, index) => (
      {bias: b, matrix: index ? padded(w_x, b.length) : null}));
    this.cells = layers.map((layer) => new CELLS[model.cell](layer, size, model));
    this.outputBias = decode(model.b_out);
    const output = model.w_out ? decode(model.w_out) : transposed(embedding, size);
    this.outputMatrix = padded(output, this.outputBias.length);
    this.logits = new Float64Array(this.outputBias.length);
    // The token before which the state is reset; null for a model that does not read lines.
    this.newline = model.newline;
  }

  // Start again from the zero state.
  reset() {
    for (const state of this.cells.flatMap((cell) => cell.states)) state.fill(0);
    this.logits.fill(0);
  }

  // Read one character; `logits` are then those of the next one.
  step(token) {
    if (token === this.newline) this.reset();
    this.cells.forEach((cell, index) => {
      if (index === 0) {
        cell.sums.set(this.table.row(token));
      } else {
        cell.sums.set(this.inputs[index].bias);
        addProduct(cell.sums, this.cells[index - 1].hidden, this.inputs[index].matrix);
      }
      cell.step();
    });
    this.logits.set(this.outputBias);
    addProduct(this.logits, this.cells.at(-1).hidden, this.outputMatrix);
  }
}
