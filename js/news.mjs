// @ts-check
/**
 * How long a run that is being trained has told nothing: a server may be connected and hang. Says it when it is long for the run's
 * own pace. Plain data: the clock is given.
 */

const LEAST_SECONDS = 120, NUM_STEPS = 20;

export class News {
  constructor() {
    this.last = "";
    this.since = 0;
  }

  /**
   * @param {{run: string, status: string, sitting: string | null, sequence: number, secondsPerStep: number | null}} history
   * @param {string} preparing what is done before the run has anything to tell @param {number} nowSeconds
   * @returns {number | null} seconds of silence that are worth telling
   */
  silence({ run, status, sitting, sequence, secondsPerStep }, preparing, nowSeconds) {
    const now = JSON.stringify([run, status, sitting, sequence, preparing]);
    if (now !== this.last) {
      this.last = now;
      this.since = nowSeconds;
    }
    const seconds = nowSeconds - this.since;
    return status === "running" && seconds >= Math.max(LEAST_SECONDS, NUM_STEPS * (secondsPerStep ?? 0)) ? seconds : null;
  }
}
