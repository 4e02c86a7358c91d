"use strict";
// The random numbers of JAX: Threefry-2x32 (Salmon et al. 2011) and the Gumbel noise made from it.
// A key is a pair of unsigned 32-bit numbers.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
const SMALLEST_NORMAL = 2 ** -126;

// Encrypt a pair of 32-bit numbers by a key.
function threefry(key, first, second) {
  const keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda];
  let x = (first + keys[0]) | 0;
  let y = (second + keys[1]) | 0;
  for (let group = 0; group < 5; group++) {
    for (const turn of ROTATIONS[group % 2]) {
      x = (x + y) | 0;
      y = ((y << turn) | (y >>> (32 - turn))) ^ x;
    }
    x = (x + keys[(group + 1) % 3]) | 0;
    y = (y + keys[(group + 2) % 3] + group + 1) | 0;
  }
  return [x >>> 0, y >>> 0];
}

// jax.random.key(seed), for a seed of 32 bits.
function keyOf(seed) {
  return [0, seed >>> 0];
}

// jax.random.fold_in(key, data), for data of 32 bits.
function foldIn(key, data) {
  return threefry(key, 0, data);
}

// jax.random.bits(key, [count]), number `index` of them.
function randomBits(key, index) {
  const [x, y] = threefry(key, 0, index);
  return (x ^ y) >>> 0;
}

// jax.random.gumbel(key, [count]). Each step is rounded to float32, as in JAX.
function gumbels(key, count) {
  const noise = new Float32Array(count);
  for (let index = 0; index < count; index++) {
    const uniform = Math.max((randomBits(key, index) >>> 9) * 2 ** -23, SMALLEST_NORMAL);
    noise[index] = -Math.log(Math.fround(-Math.log(uniform)));
  }
  return noise;
}
