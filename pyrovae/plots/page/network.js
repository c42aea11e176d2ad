"use strict";

// The numbers of the network and the steps that compute an image from a code; pyrovae wrote both down.
const network = JSON.parse(document.getElementById("network").textContent);

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

const constants = network.constants.map((text) => new Float32Array(bytes(text)));
const tables = network.tables.map((text) => new Int32Array(bytes(text)));

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; its error is below 1.5e-7.
function erf(a) {
  const t = 1 / (1 + 0.3275911 * Math.abs(a));
  const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(a) * (1 - series * Math.exp(-a * a));
}

const functions = {/* functions */};

// All arrays are flat, and hold doubles, so that rounding errors are those of the weights alone.
const kernels = {
  gather({ table }, ...sources) {
    const places = sources.length > 1 ? Float64Array.from(sources.flatMap((source) => [...source])) : sources[0];
    return Float64Array.from(tables[table], (place) => places[place]);
  },

  map({ function: name, size }, a, b = a, c = a) {
    const f = functions[name];
    const [i, j, k] = [a, b, c].map((operand) => (operand.length > 1 ? 1 : 0)); // one number stands for all places
    const result = new Float64Array(size);
    for (let n = 0; n < size; n++) result[n] = f(a[n * i], b[n * j], c[n * k]);
    return result;
  },

  reduce({ function: name, length }, a) {
    const result = new Float64Array(a.length / length);
    for (let n = 0; n < result.length; n++) {
      let value = a[n * length];
      for (let m = n * length + 1; m < (n + 1) * length; m++) value = name === "max" ? Math.max(value, a[m]) : value + a[m];
      result[n] = value;
    }
    return result;
  },

  matmul({ rows, inner, columns, size }, a, b) {
    const result = new Float64Array(size);
    for (let row = 0; row < size / columns; row++) {
      const matrix = Math.floor(row / rows) * inner * columns;
      for (let m = 0; m < inner; m++) {
        const factor = a[row * inner + m];
        const [from, to] = [matrix + m * columns, row * columns];
        for (let n = 0; n < columns; n++) result[to + n] += factor * b[from + n];
      }
    }
    return result;
  },

  // The window is put at every place of the small side, and covers places of the large one. A convolution adds up what
  // it covers; a transposed one spreads what stands at the place.
  convolution({ small, large, window, stride, padding, dilation, groups, transposed }, image, weight) {
    const [channels, height, width] = small;
    const [largeChannels, largeHeight, largeWidth] = large;
    const depth = largeChannels / groups;
    const result = new Float64Array(transposed ? largeChannels * largeHeight * largeWidth : channels * height * width);
    let next = 0;
    for (let channel = 0; channel < channels; channel++) {
      const first = Math.floor((channel * groups) / channels) * depth;
      for (let covered = first; covered < first + depth; covered++) {
        for (let i = 0; i < window[0]; i++) {
          for (let j = 0; j < window[1]; j++) {
            const factor = weight[next++];
            for (let y = 0; y < height; y++) {
              const largeY = y * stride[0] - padding[0] + i * dilation[0];
              if (largeY < 0 || largeY >= largeHeight) continue;
              for (let x = 0; x < width; x++) {
                const largeX = x * stride[1] - padding[1] + j * dilation[1];
                if (largeX < 0 || largeX >= largeWidth) continue;
                const here = (channel * height + y) * width + x;
                const there = (covered * largeHeight + largeY) * largeWidth + largeX;
                if (transposed) result[there] += factor * image[here];
                else result[here] += factor * image[there];
              }
            }
          }
        }
      }
    }
    return result;
  },
};

// The mean of p(x | z), flat, for a code z.
function decode(z) {
  const values = [Float64Array.from(z)];
  const at = (place) => (place < 0 ? constants[-1 - place] : values[place]);
  for (const step of network.steps) values.push(kernels[step.kernel](step, ...step.inputs.map(at)));
  return at(network.output);
}
