// @ts-check
/**
 * A run's samples as rows of the same prompt and seed over the steps, and what two steps of a row are compared by.
 * Plain data: knows no page.
 */

/**
 * @typedef {import("./history.mjs").Picture} Picture
 * @typedef {import("./history.mjs").Samples} Samples
 *
 * @typedef {object} SampleRow one prompt and seed
 * @property {string} prompt
 * @property {boolean} withTrigger
 * @property {number | undefined} seed
 * @property {Map<number, Picture>} pictures by step
 */

/** In the order in which they first came. @param {Samples[]} samples @returns {{steps: number[], rows: SampleRow[]}} */
export function rowsOf(samples) {
  /** @type {Map<string, SampleRow>} */
  const rows = new Map();
  for (const { step, pictures } of samples) {
    for (const picture of pictures) {
      const key = JSON.stringify([picture.prompt, picture.seed, picture.with_trigger]);
      if (!rows.has(key)) rows.set(key, { prompt: picture.prompt, withTrigger: picture.with_trigger, seed: picture.seed, pictures: new Map() });
      rows.get(key)?.pictures.set(step, picture);
    }
  }
  return { steps: samples.map(({ step }) => step), rows: [...rows.values()] };
}

/** What a step is held against at first: the one before it in its row; the first one against the second. @param {SampleRow} row @param {number} step */
export function partnerOf(row, step) {
  const steps = [...row.pictures.keys()].sort((a, b) => a - b);
  const at = steps.indexOf(step);
  return steps[at > 0 ? at - 1 : Math.min(1, steps.length - 1)];
}
