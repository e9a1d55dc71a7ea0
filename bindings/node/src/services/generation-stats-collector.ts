// Figures of one generation, taken where its tokens arrive. All times are seconds, as in
// GenerationStats.

export interface CollectedStats {
  tokensGenerated: number;
  /** Tokens by the time behind the first. */
  tokensPerSecond: number;
  timeToFirstToken: number;
  totalTime: number;
}

export interface GenerationStatsCollectorOptions {
  /** The clock starts with the collector, so that the wait for the first token counts. */
  autoStart?: boolean;
  /** Milliseconds; for tests. */
  now?: () => number;
}

export class GenerationStatsCollector {
  private readonly autoStart: boolean;
  private readonly now: () => number;
  private startedAt: number | undefined;
  private firstAt: number | undefined;
  private stoppedAt: number | undefined;
  private nTokens = 0;

  constructor(options: GenerationStatsCollectorOptions = {}) {
    this.autoStart = options.autoStart ?? true;
    this.now = options.now ?? (() => performance.now());
    if (this.autoStart) this.start();
  }

  /** Begins anew. */
  start(): void {
    this.startedAt = this.now();
    this.firstAt = this.stoppedAt = undefined;
    this.nTokens = 0;
  }

  /** A token has come. Starts the clock if nobody has; does nothing behind stop(). */
  update(_token?: string): void {
    if (this.stoppedAt !== undefined) return;
    if (this.startedAt === undefined) this.start();
    this.firstAt ??= this.now();
    this.nTokens++;
  }

  stop(): void {
    if (this.startedAt !== undefined) this.stoppedAt ??= this.now();
  }

  /** As it was constructed. */
  reset(): void {
    this.startedAt = this.firstAt = this.stoppedAt = undefined;
    this.nTokens = 0;
    if (this.autoStart) this.start();
  }

  get isStarted(): boolean {
    return this.startedAt !== undefined;
  }

  get hasTokens(): boolean {
    return this.nTokens > 0;
  }

  get tokensGenerated(): number {
    return this.nTokens;
  }

  get totalTime(): number {
    if (this.startedAt === undefined) return 0;
    return ((this.stoppedAt ?? this.now()) - this.startedAt) / 1000;
  }

  /** The total time as long as no token has come. */
  get timeToFirstToken(): number {
    if (this.startedAt === undefined) return 0;
    return this.firstAt === undefined ? this.totalTime : (this.firstAt - this.startedAt) / 1000;
  }

  get tokensPerSecond(): number {
    const seconds = this.totalTime - this.timeToFirstToken;
    return seconds > 0 ? this.nTokens / seconds : 0;
  }

  getStats(): CollectedStats {
    return {
      tokensGenerated: this.nTokens,
      tokensPerSecond: this.tokensPerSecond,
      timeToFirstToken: this.timeToFirstToken,
      totalTime: this.totalTime,
    };
  }
}
