// How many requests a batch may hold: shrinks when batches take longer than the target, grows when
// they are done well before it. Decides at most once a second, on the mean of the last ten.

import { Samples } from './samples.js';

const DECIDE_EVERY_MS = 1000;
const N_SAMPLES = 10;
// Mean over target at or above which the size is multiplied, in this order.
const STEPS = [
  { over: 1.5, times: 0.7 },
  { over: 1.2, times: 0.85 },
] as const;
const STEPS_DOWN = [
  { under: 0.5, times: 1.5 },
  { under: 0.8, times: 1.15 },
] as const;

export interface AdaptiveSizeOptions {
  initial: number;
  max: number;
  targetMs: number;
  enabled: boolean;
  now: () => number;
}

export class AdaptiveSize {
  readonly initial: number;
  private size: number;
  private decidedAt: number;
  private readonly times = new Samples(N_SAMPLES);

  constructor(private readonly options: AdaptiveSizeOptions) {
    this.initial = Math.min(Math.max(Math.trunc(options.initial), 1), options.max);
    this.size = this.initial;
    this.decidedAt = options.now();
  }

  get current(): number {
    return this.size;
  }

  get enabled(): boolean {
    return this.options.enabled;
  }

  /** A batch took this long from being sent to its answer. */
  record(batchMs: number): void {
    if (!this.options.enabled) return;
    this.times.add(batchMs);
    const now = this.options.now();
    if (this.times.count < N_SAMPLES || now - this.decidedAt < DECIDE_EVERY_MS) return;
    this.decidedAt = now;
    const ratio = this.times.mean() / this.options.targetMs;
    const times = STEPS.find((step) => ratio > step.over)?.times
      ?? STEPS_DOWN.find((step) => ratio < step.under)?.times;
    if (times === undefined) return;
    // Rounded away from where it is, else 1 could never grow to 2.
    const wanted = times > 1 ? Math.ceil(this.size * times) : Math.floor(this.size * times);
    this.size = Math.min(Math.max(wanted, 1), this.options.max);
    this.times.clear(); // of the old size
  }
}
