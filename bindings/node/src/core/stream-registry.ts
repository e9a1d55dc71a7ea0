// Who may stream, and whose chunk is whose. A stream has its place from the moment it is admitted
// to the moment the runtime says that it is over, whatever its consumer has done meanwhile: places
// follow what the runtime really holds. Streams beyond the limit wait, as long as their own time
// limit.
import { EngineClientError, errorOfWire, malformed } from '../errors.js';
import type { FinishReason, GenerationStats, StreamMetrics } from '../types.js';
import type { GenerationStream } from './stream.js';

const THROUGHPUT_SAMPLES = 100;

export interface RegistryOptions {
  maxActive: number;
  maxWaiting: number;
  credits: number;
  /** Notifications to the runtime. */
  sendCredits: (streamId: string, credits: number) => void;
  sendCancel: (streamId: string) => void;
  now?: () => number;
}

export interface WireStats {
  tokens_generated: number;
  tokens_per_second: number;
  time_to_first_token: number;
  total_time: number;
  prompt_tokens?: number;
  cached_tokens?: number;
}

interface Place {
  readonly stream: GenerationStream;
  isOnWire: boolean;
  stats: WireStats | undefined;
  nTaken: number;
}

export class StreamRegistry {
  private readonly places = new Map<string, Place>();
  private readonly queue = new Set<{ look(): void; refuse(error: EngineClientError): void }>();
  private nTotal = 0;
  private nCompleted = 0;
  private nCancelled = 0;
  private nFailed = 0;
  private readonly ttft: number[] = [];
  private readonly throughput: number[] = [];

  constructor(private readonly options: RegistryOptions) {}

  get nActive(): number {
    return this.places.size;
  }

  isActive(streamId: string): boolean {
    const place = this.places.get(streamId);
    return place !== undefined && !place.stream.isSettled;
  }

  /** Resolves when the stream has its place, which it keeps until leaveWire(). */
  async admit(stream: GenerationStream): Promise<void> {
    if (this.isActive(stream.id)) {
      throw new EngineClientError('InvalidParams', `stream '${stream.id}' is under way already`,
        { field: 'streamId' });
    }
    while (!stream.isSettled) {
      const previous = this.places.get(stream.id);
      if (previous === undefined && this.places.size < this.options.maxActive) break;
      await this.wait();
    }
    if (stream.isSettled) return;
    this.nTotal += 1;
    this.places.set(stream.id, { stream, isOnWire: false, stats: undefined, nTaken: 0 });
  }

  /** From here on the runtime knows it: an end here is told there. */
  enterWire(stream: GenerationStream): void {
    const place = this.placeOf(stream);
    if (place !== undefined) place.isOnWire = true;
  }

  /** The runtime is done with it, or never had it. */
  leaveWire(stream: GenerationStream): void {
    if (this.placeOf(stream) === undefined) return;
    this.places.delete(stream.id);
    this.wake();
  }

  cancel(streamId: string, error: EngineClientError): boolean {
    const place = this.places.get(streamId);
    return place !== undefined && place.stream.settle({ kind: 'ended', error });
  }

  /** The runtime has begun; a cancel that was sent while the call still waited here is repeated. */
  cancelSettled(stream: GenerationStream): void {
    if (stream.isSettled && this.placeOf(stream) !== undefined) this.options.sendCancel(stream.id);
  }

  /** The consumer has taken n chunks: the runtime may send as many more. */
  acknowledgeChunk(stream: GenerationStream, n = 1): void {
    const place = this.placeOf(stream);
    if (place === undefined || !place.isOnWire || stream.isSettled) return;
    place.nTaken += n;
    if (place.nTaken * 2 < this.options.credits) return;
    this.options.sendCredits(stream.id, place.nTaken);
    place.nTaken = 0;
  }

  /** The stream's end on this side; one that the runtime still computes is cancelled there. */
  settled(stream: GenerationStream, outcome: 'completed' | 'cancelled' | 'failed',
    stats?: GenerationStats): void {
    if (outcome === 'completed') this.nCompleted += 1;
    else if (outcome === 'cancelled') this.nCancelled += 1;
    else this.nFailed += 1;
    if (stats !== undefined) this.record(stats);
    const place = this.placeOf(stream);
    if (place === undefined) {
      this.wake();
    } else if (!place.isOnWire) {
      this.leaveWire(stream);
    } else if (outcome !== 'completed') {
      this.options.sendCancel(stream.id);
    }
  }

  /** A notification of the runtime. One of the wrong form ends its stream and nothing else. */
  handle(method: string, params: Record<string, unknown>): void {
    const id = params['stream_id'];
    const place = typeof id === 'string' ? this.places.get(id) : undefined;
    if (place === undefined) return;
    try {
      this.take(place, method, params);
    } catch (thrown) {
      const error = thrown instanceof EngineClientError ? thrown : malformed(method, thrown);
      place.stream.settle({ kind: 'failed', error });
    }
  }

  /** The runtime is gone: every stream fails and nothing waits for it. */
  failAll(error: EngineClientError): void {
    for (const place of [...this.places.values()]) {
      this.places.delete(place.stream.id);
      place.stream.settle({ kind: 'failed', error });
    }
    this.wake();
  }

  /** The engine ends: those that wait for a place go, too. */
  end(error: EngineClientError): void {
    const waiting = [...this.queue];
    this.queue.clear();
    for (const waiter of waiting) waiter.refuse(error);
    this.failAll(error);
  }

  metrics(): StreamMetrics {
    return {
      timestamp: Date.now(),
      activeStreams: this.places.size,
      totalStreams: this.nTotal,
      completedStreams: this.nCompleted,
      cancelledStreams: this.nCancelled,
      failedStreams: this.nFailed,
      averageTTFT: mean(this.ttft) * 1000,
      averageThroughput: mean(this.throughput),
      currentLimit: this.options.maxActive,
      waitingStreams: this.queue.size,
      utilizationRate: this.places.size / this.options.maxActive,
    };
  }

  /** A settled stream's id may have gone to another one. */
  private placeOf(stream: GenerationStream): Place | undefined {
    const place = this.places.get(stream.id);
    return place?.stream === stream ? place : undefined;
  }

  private take(place: Place, method: string, params: Record<string, unknown>): void {
    const { stream } = place;
    if (method === 'stream.chunk') {
      const { tokens } = params;
      if (tokens === undefined) stream.push(params);
      else if (Array.isArray(tokens)) for (const token of tokens) stream.push(token);
      else throw malformed(method);
    } else if (method === 'stream.stats') {
      place.stats = params as unknown as WireStats;
    } else if (method === 'stream.event') {
      this.finish(place, params);
    }
  }

  private finish(place: Place, params: Record<string, unknown>): void {
    const { stream } = place;
    const { finish_reason } = params;
    const reason = typeof finish_reason === 'string' ? finish_reason as FinishReason : undefined;
    this.leaveWire(stream);
    if (params['event'] === 'completed') {
      const stats = place.stats === undefined ? stream.localStats(reason)
        : statsOfWire(place.stats, stream.modelId, reason);
      stream.settle({ kind: 'completed', stats });
      return;
    }
    stream.settleWith(errorOfWire(params['error'], 'generate'));
  }

  private record(stats: GenerationStats): void {
    this.ttft.push(stats.timeToFirstToken);
    this.throughput.push(stats.tokensPerSecond);
    if (this.ttft.length > THROUGHPUT_SAMPLES) this.ttft.shift();
    if (this.throughput.length > THROUGHPUT_SAMPLES) this.throughput.shift();
  }

  private wait(): Promise<void> {
    if (this.queue.size >= this.options.maxWaiting) {
      return Promise.reject(new EngineClientError('ServerError',
        `${this.places.size} streams are under way and ${this.queue.size} are waiting`));
    }
    return new Promise((resolve, reject) => {
      this.queue.add({ look: resolve, refuse: reject });
    });
  }

  /** Whoever waits looks again, in their order; who finds no place waits behind the others. */
  private wake(): void {
    const waiting = [...this.queue];
    this.queue.clear();
    for (const waiter of waiting) waiter.look();
  }
}

const NUMBERS = [
  'tokens_generated', 'tokens_per_second', 'time_to_first_token', 'total_time',
] as const satisfies readonly (keyof WireStats)[];

export function statsOfWire(wire: WireStats, modelId: string,
  finishReason: FinishReason | undefined): GenerationStats {
  if (NUMBERS.some((name) => typeof wire[name] !== 'number')) throw malformed('stream.stats');
  const stats: GenerationStats = {
    tokensGenerated: wire.tokens_generated,
    tokensPerSecond: wire.tokens_per_second,
    timeToFirstToken: wire.time_to_first_token,
    totalTime: wire.total_time,
    modelId,
  };
  if (wire.prompt_tokens !== undefined) stats.promptTokens = wire.prompt_tokens;
  if (wire.cached_tokens !== undefined) stats.cachedTokens = wire.cached_tokens;
  if (finishReason !== undefined) stats.finishReason = finishReason;
  return stats;
}

function mean(values: readonly number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length;
}
