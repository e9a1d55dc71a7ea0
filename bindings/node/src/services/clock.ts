// Time as the services see it: tests hand in their own.

export interface Clock {
  /** Milliseconds since any fixed moment; never goes back. */
  now(): number;
  /** Calls fn once, ms from now. Returns what takes the call back. Keeps no process alive. */
  after(ms: number, fn: () => void): () => void;
}

const TIMER_MAX_MS = 0x7fffffff; // a longer one would fire at once

export const systemClock: Clock = {
  now: () => performance.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, Math.min(Math.max(ms, 0), TIMER_MAX_MS));
    timer.unref();
    return () => clearTimeout(timer);
  },
};
