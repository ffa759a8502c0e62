// @ts-check
/**
 * A long series of numbers over steps in bounded memory: stretches of steps with their lowest and highest number.
 * When there are too many, every two become one; a peak is never lost. Plain data: knows no page.
 */

export const CAPACITY = 4096; // stretches; a chart has about a thousand columns

export class Trace {
  constructor() {
    this.count = 0;
    this.stride = 1;
    this.steps = new Float64Array(CAPACITY); // the first of each stretch
    this.lows = new Float32Array(CAPACITY);
    this.highs = new Float32Array(CAPACITY);
    this.last = -Infinity; // the last step that was added
    this.lastValue = NaN;
    this.revision = 0; // grows with each change
  }

  /** @param {number} step at or after the last one @param {number} low @param {number} high */
  add(step, low, high = low) {
    if (!Number.isFinite(low) || !Number.isFinite(high) || step === this.last) return;
    if (step < this.last) this.cutFrom(step);
    this.revision++;
    this.last = step;
    this.lastValue = high;
    if (this.count && this.stretchOf(step) === this.stretchOf(this.steps[this.count - 1])) {
      this.lows[this.count - 1] = Math.min(this.lows[this.count - 1], low);
      this.highs[this.count - 1] = Math.max(this.highs[this.count - 1], high);
      return;
    }
    if (this.count === CAPACITY) this.halve();
    this.steps[this.count] = step;
    this.lows[this.count] = low;
    this.highs[this.count] = high;
    this.count++;
  }

  /** Steps that are trained anew replace what was there. @param {number} step */
  cutFrom(step) {
    while (this.count && this.steps[this.count - 1] >= step) this.count--;
    this.last = this.count ? this.steps[this.count - 1] : -Infinity;
    this.revision++;
  }

  /** @param {number} step */
  stretchOf(step) {
    return Math.floor(step / this.stride);
  }

  halve() {
    const { steps, lows, highs } = this;
    const before = this.count;
    while (this.count > CAPACITY / 2) {
      this.stride *= 2;
      let kept = 0;
      for (let i = 0; i < this.count; i++) {
        if (kept && this.stretchOf(steps[i]) === this.stretchOf(steps[kept - 1])) {
          lows[kept - 1] = Math.min(lows[kept - 1], lows[i]);
          highs[kept - 1] = Math.max(highs[kept - 1], highs[i]);
        } else {
          steps[kept] = steps[i];
          lows[kept] = lows[i];
          highs[kept++] = highs[i];
        }
      }
      this.count = kept;
    }
    console.assert(this.count < before);
  }

  /** Index of the first stretch that begins at or after a step. @param {number} step */
  indexOf(step) {
    let low = 0, high = this.count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The number nearest to a step, or null. @param {number} step */
  at(step) {
    if (!this.count) return null;
    const after = Math.min(this.indexOf(step), this.count - 1), before = Math.max(0, after - 1);
    const nearest = Math.abs(this.steps[before] - step) < Math.abs(this.steps[after] - step) ? before : after;
    return { step: this.steps[nearest], value: (this.lows[nearest] + this.highs[nearest]) / 2 };
  }

  /**
   * One lowest and highest number for each column of a drawing that has any.
   * @param {number} first step @param {number} last step @param {number} count of columns
   * @returns {Columns}
   */
  columns(first, last, count) {
    const columns = { at: /** @type {number[]} */ ([]), lows: /** @type {number[]} */ ([]), highs: /** @type {number[]} */ ([]), low: Infinity, high: -Infinity };
    const scale = Math.max(1, count - 1) / Math.max(1e-9, last - first);
    for (let i = this.indexOf(first); i < this.count && this.steps[i] <= last; i++) {
      const column = Math.round((this.steps[i] - first) * scale), end = columns.at.length - 1;
      if (end >= 0 && columns.at[end] === column) {
        columns.lows[end] = Math.min(columns.lows[end], this.lows[i]);
        columns.highs[end] = Math.max(columns.highs[end], this.highs[i]);
      } else {
        columns.at.push(column);
        columns.lows.push(this.lows[i]);
        columns.highs.push(this.highs[i]);
      }
      columns.low = Math.min(columns.low, this.lows[i]);
      columns.high = Math.max(columns.high, this.highs[i]);
    }
    return columns;
  }
}

/** @typedef {{at: number[], lows: number[], highs: number[], low: number, high: number}} Columns `at`: the column's number */

/** @param {{stride: number, steps: number[], low: (number | null)[], high: (number | null)[]}} answer of the server */
export function traceOf(answer) {
  const trace = new Trace();
  trace.stride = Math.max(1, answer.stride);
  answer.steps.forEach((step, i) => trace.add(step, answer.low[i] ?? NaN, answer.high[i] ?? NaN));
  return trace;
}
