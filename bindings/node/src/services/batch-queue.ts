// Gathers calls of one kind into one message. Work is never held while nothing is under way: an
// idle queue sends at the end of the current run of microtasks, so calls issued together travel
// together and a lone one waits for nobody. While batches are under way newcomers gather until a
// batch ends, the batch is full, or the oldest has waited the flush interval. Whatever ends a batch,
// the queue is looked at again; each item has a deadline and an optional signal of its own.

import { AdaptiveSize } from './adaptive-size.js';
import { type Clock, systemClock } from './clock.js';
import { Samples } from './samples.js';

export type BatchPriority = 'high' | 'normal' | 'low';

/** What became of one request of a batch. */
export type BatchOutcome<Result> = { ok: true; value: Result } | { ok: false; error: Error };

export interface BatchDispatch {
  partitionKey: string;
  batchSize: number;
  durationMs: number;
  queueWaitAvgMs: number;
  queueWaitP95Ms: number;
  priorityMix: Record<BatchPriority, number>;
  targetBatchSize: number;
}

export interface BatchQueueOptions<Request, Result> {
  /** Names the queue in dispatches: `tokenize`. */
  name: string;
  /** One message for all; an outcome for each, in order. A rejection fails all. */
  sendBatch: (requests: Request[]) => Promise<BatchOutcome<Result>[]>;
  /** The single verb, for a batch of one and for all while canBatch() is false. */
  sendOne: (request: Request, signal?: AbortSignal) => Promise<Result>;
  canBatch?: () => boolean;
  /** The errors of the queue itself. */
  timeoutError: (timeoutMs: number) => Error;
  cancelledError: (reason: unknown) => Error;
  /** Bytes of a request in a message, roughly. */
  sizeOf?: (request: Request) => number;
  /** Behind each batch of several. Must not throw. */
  onDispatched?: (dispatch: BatchDispatch) => void;
  enabled?: boolean;
  maxBatchSize?: number;
  /** What the other side accepts. */
  batchSizeLimit?: number;
  flushIntervalMs?: number;
  adaptiveSizing?: boolean;
  targetBatchTimeMs?: number;
  priorityQueue?: boolean;
  maxBatchBytes?: number;
  /** Deadline of an item that brings none. */
  timeoutMs?: number;
  clock?: Clock;
}

export interface BatchItemOptions {
  priority?: BatchPriority | undefined;
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Times in ms. */
export interface BatchPerformance {
  avgBatchTime: number;
  p50BatchTime: number;
  p95BatchTime: number;
  p99BatchTime: number;
  avgBatchSize: number;
  avgQueueLatency: number;
  p95QueueLatency: number;
  samplesRecorded: number;
}

export interface BatchQueueStats {
  /** Messages that held several requests. */
  batches: number;
  /** Requests that came. */
  requests: number;
  /** Requests sent by the single verb: alone in the queue, or batches are off. */
  fallbacks: number;
  queueSize: number;
  /** Requests a message, over all that were sent. */
  efficiency: number;
  currentMaxBatchSize: number;
  initialMaxBatchSize: number;
  adaptiveSizingEnabled: boolean;
  performance: BatchPerformance;
}

const ORDER: readonly BatchPriority[] = ['high', 'normal', 'low'];
const N_BATCH_SAMPLES = 100;
const N_WAIT_SAMPLES = 1000;
const IN_FLIGHT_MAX = 8;

interface Item<Request, Result> {
  request: Request;
  bytes: number;
  priority: BatchPriority;
  queuedAt: number;
  signal: AbortSignal | undefined;
  resolve: (value: Result) => void;
  reject: (error: Error) => void;
  /** Ends the timer and the listener. */
  release: () => void;
  isSettled: boolean;
}

export class BatchQueue<Request, Result> {
  private readonly waiting: Record<BatchPriority, Item<Request, Result>[]> = {
    high: [], normal: [], low: [],
  };
  private readonly underWay = new Set<Item<Request, Result>>();
  private readonly clock: Clock;
  private readonly size: AdaptiveSize;
  private readonly isEnabled: boolean;
  private readonly flushIntervalMs: number;
  private readonly maxBatchBytes: number;
  private readonly timeoutMs: number;
  private nBatchesUnderWay = 0;
  private isFlushPlanned = false;
  private cancelTimer: (() => void) | undefined;
  private idleWaiters: (() => void)[] = [];
  private counts = { batches: 0, requests: 0, fallbacks: 0, batched: 0 };
  private readonly batchMs = new Samples(N_BATCH_SAMPLES);
  private readonly batchSizes = new Samples(N_BATCH_SAMPLES);
  private readonly waitsMs = new Samples(N_WAIT_SAMPLES);

  constructor(private readonly options: BatchQueueOptions<Request, Result>) {
    this.clock = options.clock ?? systemClock;
    this.isEnabled = options.enabled ?? true;
    this.flushIntervalMs = options.flushIntervalMs ?? 2;
    this.maxBatchBytes = options.maxBatchBytes ?? 1 << 20;
    this.timeoutMs = options.timeoutMs ?? 300_000;
    this.size = new AdaptiveSize({
      initial: options.maxBatchSize ?? 20,
      max: Math.min(options.batchSizeLimit ?? 64, 100),
      targetMs: options.targetBatchTimeMs ?? 10,
      enabled: options.adaptiveSizing ?? true,
      now: () => this.clock.now(),
    });
  }

  enqueue(request: Request, options: BatchItemOptions = {}): Promise<Result> {
    const { signal } = options;
    if (signal?.aborted) return Promise.reject(this.options.cancelledError(signal.reason));
    return new Promise((resolve, reject) => {
      const item: Item<Request, Result> = {
        request, signal, resolve, reject,
        bytes: this.options.sizeOf?.(request) ?? 0,
        priority: this.options.priorityQueue === false ? 'normal' : options.priority ?? 'normal',
        queuedAt: this.clock.now(),
        release: () => {},
        isSettled: false,
      };
      this.watch(item, options.timeoutMs ?? this.timeoutMs);
      this.counts.requests++;
      this.waiting[item.priority].push(item);
      this.look();
    });
  }

  /** Sends what waits and resolves when nothing waits or is under way any more. */
  flush(): Promise<void> {
    this.sendAll();
    if (this.isIdle()) return Promise.resolve();
    return new Promise((resolve) => this.idleWaiters.push(resolve));
  }

  /** Rejects all items, waiting or under way. The queue may be used again. */
  cleanup(error: Error): void {
    for (const priority of ORDER) {
      for (const item of this.waiting[priority].splice(0)) this.fail(item, error);
    }
    for (const item of this.underWay) this.fail(item, error);
    this.rearm();
    this.tellIdle();
  }

  stats(): BatchQueueStats {
    const { batches, requests, fallbacks, batched } = this.counts;
    const messages = batches + fallbacks;
    return {
      batches, requests, fallbacks,
      queueSize: this.queueSize(),
      efficiency: messages === 0 ? 0 : (batched + fallbacks) / messages,
      currentMaxBatchSize: this.size.current,
      initialMaxBatchSize: this.size.initial,
      adaptiveSizingEnabled: this.size.enabled,
      performance: {
        avgBatchTime: this.batchMs.mean(),
        p50BatchTime: this.batchMs.percentile(50),
        p95BatchTime: this.batchMs.percentile(95),
        p99BatchTime: this.batchMs.percentile(99),
        avgBatchSize: this.batchSizes.mean(),
        avgQueueLatency: this.waitsMs.mean(),
        p95QueueLatency: this.waitsMs.percentile(95),
        samplesRecorded: this.batchMs.count,
      },
    };
  }

  resetStats(): void {
    this.counts = { batches: 0, requests: 0, fallbacks: 0, batched: 0 };
    this.batchMs.clear();
    this.batchSizes.clear();
    this.waitsMs.clear();
  }

  private queueSize(): number {
    return ORDER.reduce((sum, priority) => sum + this.waiting[priority].length, 0);
  }

  private isIdle(): boolean {
    return this.nBatchesUnderWay === 0 && this.queueSize() === 0;
  }

  private tellIdle(): void {
    if (!this.isIdle()) return;
    for (const tell of this.idleWaiters.splice(0)) tell();
  }

  /** Deadline and signal of an item. Both end it wherever it is; its answer is dropped then. */
  private watch(item: Item<Request, Result>, timeoutMs: number): void {
    const leave = (error: Error) => {
      const queue = this.waiting[item.priority];
      const at = queue.indexOf(item);
      if (at >= 0) queue.splice(at, 1);
      this.fail(item, error);
      this.rearm();
      this.tellIdle();
    };
    const cancelTimer = this.clock.after(timeoutMs,
      () => leave(this.options.timeoutError(timeoutMs)));
    const onAbort = () => leave(this.options.cancelledError(item.signal?.reason));
    item.signal?.addEventListener('abort', onAbort, { once: true });
    item.release = () => {
      cancelTimer();
      item.signal?.removeEventListener('abort', onAbort);
    };
  }

  private settle(item: Item<Request, Result>): boolean {
    if (item.isSettled) return false;
    item.isSettled = true;
    item.release();
    this.underWay.delete(item);
    return true;
  }

  private fail(item: Item<Request, Result>, error: Error): void {
    if (this.settle(item)) item.reject(error);
  }

  private succeed(item: Item<Request, Result>, value: Result): void {
    if (this.settle(item)) item.resolve(value);
  }

  /** Called whenever something came or ended: decides what has to happen for what waits. */
  private look(): void {
    const n = this.queueSize();
    if (n === 0) return;
    const isFull = n >= this.size.current && this.nBatchesUnderWay < IN_FLIGHT_MAX;
    if (this.nBatchesUnderWay === 0 || isFull) this.planFlush();
    this.rearm();
  }

  private planFlush(): void {
    if (this.isFlushPlanned) return;
    this.isFlushPlanned = true;
    queueMicrotask(() => {
      this.isFlushPlanned = false;
      this.sendTick();
    });
  }

  /** What has gathered in this run of microtasks, in messages that are no smaller than at first:
   * a size that has shrunk says when one leaves, not how many there are. */
  private sendTick(): void {
    const limit = Math.max(this.size.current, this.size.initial);
    const nMin = this.nBatchesUnderWay === 0 ? 1 : this.size.current;
    while (this.queueSize() >= nMin && this.nBatchesUnderWay < IN_FLIGHT_MAX) this.sendNext(limit);
    this.rearm();
  }

  private sendAll(): void {
    while (this.queueSize() > 0 && this.nBatchesUnderWay < IN_FLIGHT_MAX) this.sendNext();
    this.rearm();
  }

  /** The timer of the oldest that waits while batches are under way. */
  private rearm(): void {
    this.cancelTimer?.();
    this.cancelTimer = undefined;
    if (this.queueSize() === 0 || this.nBatchesUnderWay === 0
        || this.nBatchesUnderWay >= IN_FLIGHT_MAX) {
      return; // a planned flush or the end of a batch looks again
    }
    const oldest = Math.min(...ORDER.map((p) => this.waiting[p][0]?.queuedAt ?? Infinity));
    const wait = oldest + this.flushIntervalMs - this.clock.now();
    this.cancelTimer = this.clock.after(Math.max(wait, 0), () => this.sendAll());
  }

  private takeBatch(nMax: number): Item<Request, Result>[] {
    const limit = this.isEnabled && (this.options.canBatch?.() ?? true) ? nMax : 1;
    const taken: Item<Request, Result>[] = [];
    let bytes = 0;
    for (const priority of ORDER) {
      const queue = this.waiting[priority];
      let n = 0;
      for (const item of queue) {
        if (taken.length === limit) break;
        if (taken.length > 0 && bytes + item.bytes > this.maxBatchBytes) break;
        bytes += item.bytes;
        taken.push(item);
        n++;
      }
      queue.splice(0, n);
      if (queue.length > 0) break;
    }
    return taken;
  }

  private sendNext(nMax = this.size.current): void {
    const items = this.takeBatch(nMax);
    const sentAt = this.clock.now();
    for (const item of items) {
      this.underWay.add(item);
      this.waitsMs.add(sentAt - item.queuedAt);
    }
    this.nBatchesUnderWay++;
    const isBatch = items.length > 1;
    if (isBatch) {
      this.counts.batches++;
      this.counts.batched += items.length;
    } else {
      this.counts.fallbacks++;
    }
    const sent = isBatch ? this.sendMany(items) : this.sendAlone(items[0] as Item<Request, Result>);
    void sent.then(() => {
      this.nBatchesUnderWay--;
      const durationMs = this.clock.now() - sentAt;
      if (isBatch) this.record(items.length, durationMs);
      // A batch that has shrunk to one must be able to grow again.
      if (isBatch || this.size.current === 1) this.size.record(durationMs);
      this.look(); // whatever came while this was under way
      this.tellIdle();
      if (isBatch) this.options.onDispatched?.(this.dispatchOf(items, sentAt, durationMs));
    });
  }

  private async sendAlone(item: Item<Request, Result>): Promise<void> {
    try {
      this.succeed(item, await this.options.sendOne(item.request, item.signal));
    } catch (error) {
      this.fail(item, error as Error);
    }
  }

  private async sendMany(items: Item<Request, Result>[]): Promise<void> {
    try {
      const outcomes = await this.options.sendBatch(items.map((item) => item.request));
      if (outcomes.length !== items.length) {
        throw new Error(`${this.options.name}: ${outcomes.length} answers to ${items.length} requests`);
      }
      items.forEach((item, i) => {
        const outcome = outcomes[i] as BatchOutcome<Result>;
        if (outcome.ok) this.succeed(item, outcome.value);
        else this.fail(item, outcome.error);
      });
    } catch (error) {
      for (const item of items) this.fail(item, error as Error);
    }
  }

  private record(batchSize: number, durationMs: number): void {
    this.batchMs.add(durationMs);
    this.batchSizes.add(batchSize);
  }

  private dispatchOf(items: Item<Request, Result>[], sentAt: number, durationMs: number,
  ): BatchDispatch {
    const waits = new Samples(items.length);
    const priorityMix = { high: 0, normal: 0, low: 0 };
    for (const item of items) {
      waits.add(sentAt - item.queuedAt);
      priorityMix[item.priority]++;
    }
    return {
      partitionKey: this.options.name, batchSize: items.length, durationMs,
      queueWaitAvgMs: waits.mean(), queueWaitP95Ms: waits.percentile(95), priorityMix,
      targetBatchSize: this.size.current,
    };
  }
}
