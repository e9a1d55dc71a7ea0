// The last n values of something: mean and nearest-rank percentiles. Bounded by construction.

export class Samples {
  private readonly values: number[] = [];
  private next = 0;

  constructor(private readonly capacity: number) {}

  add(value: number): void {
    this.values[this.next] = value;
    this.next = (this.next + 1) % this.capacity;
  }

  get count(): number {
    return this.values.length;
  }

  clear(): void {
    this.values.length = 0;
    this.next = 0;
  }

  /** Mean of all, or of the n newest. 0 of none. */
  mean(n = this.count): number {
    const taken = Math.min(n, this.count);
    let sum = 0;
    for (let i = 1; i <= taken; i++) {
      sum += this.values[(this.next - i + this.capacity) % this.capacity] as number;
    }
    return taken === 0 ? 0 : sum / taken;
  }

  percentile(percent: number): number {
    return percentile(this.values, percent);
  }
}

/** Nearest rank without interpolation; 0 of none. */
export function percentile(values: readonly number[], percent: number): number {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  const rank = Math.ceil((percent / 100) * sorted.length);
  return sorted[Math.min(Math.max(rank, 1), sorted.length) - 1] as number;
}
