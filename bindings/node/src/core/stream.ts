// One generation, from the first next() to its end: an async iterator over chunks that the runtime
// sends. settle() is the only way to an end and works once; whatever comes later finds nobody.
// Chunks are frozen and made for this stream alone: there is no pool.
import { TimeoutError, malformed } from '../errors.js';
import type { EngineClientError } from '../errors.js';
import type {
  FinishReason, GenerationStats, GeneratorChunk, TokenChunk, TopLogprob,
} from '../types.js';

/** How a stream ended. Only `failed` is thrown; the others are chunks. */
export type Outcome =
  | { kind: 'completed'; stats: GenerationStats }
  | { kind: 'ended'; error: EngineClientError }
  | { kind: 'failed'; error: EngineClientError }
  | { kind: 'left' };

export interface StreamOwner {
  /** The first next(). */
  begin(stream: GenerationStream): void;
  /** n chunks more were taken by the consumer. */
  taken(stream: GenerationStream, n: number): void;
  token(stream: GenerationStream, chunk: TokenChunk): void;
  settled(stream: GenerationStream, outcome: Outcome): void;
}

export interface WireToken {
  token?: string;
  token_id?: number;
  /** null: minus infinity, which JSON cannot say. */
  logprob?: number | null;
  top_logprobs?: { token?: string; token_id?: number; logprob: number | null }[];
  is_final?: boolean;
}

type Writable<T> = { -readonly [K in keyof T]: T[K] };
type Step = IteratorResult<GeneratorChunk, void>;
interface Waiter {
  resolve(step: Step): void;
  reject(error: unknown): void;
}

export class GenerationStream implements AsyncGenerator<GeneratorChunk, void, undefined> {
  nTokens = 0;
  readonly createdAt = performance.now();
  firstTokenAt: number | undefined;
  private chunks: GeneratorChunk[] = [];
  private waiters: Waiter[] = [];
  private hasBegun = false;
  private outcome: Outcome | undefined;
  private text = '';

  constructor(readonly id: string, readonly modelId: string, readonly timeoutMs: number,
    private readonly owner: StreamOwner, private readonly keepsText: boolean) {}

  get isSettled(): boolean {
    return this.outcome !== undefined;
  }

  // ---- the consumer's side ----

  next(): Promise<Step> {
    if (!this.hasBegun && this.outcome === undefined) {
      this.hasBegun = true;
      this.owner.begin(this);
    }
    const chunk = this.chunks.shift();
    if (chunk !== undefined) {
      if (chunk.type === 'token') this.owner.taken(this, 1);
      return Promise.resolve({ done: false, value: chunk });
    }
    if (this.outcome === undefined) {
      return new Promise((resolve, reject) => this.waiters.push({ resolve, reject }));
    }
    return this.end();
  }

  return(): Promise<Step> {
    this.settle({ kind: 'left' });
    this.chunks = [];
    return Promise.resolve({ done: true, value: undefined });
  }

  throw(error: unknown): Promise<Step> {
    void this.return();
    return Promise.reject(error);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  // ---- the runtime's side ----

  /** Anything may come; what is no token is an error of the runtime's. */
  push(wire: unknown): void {
    if (this.outcome !== undefined) return;
    if (!isToken(wire)) throw malformed('stream.chunk');
    const token = wire.token ?? '';
    if (wire.token_id !== undefined) this.nTokens += 1;
    this.firstTokenAt ??= performance.now();
    if (this.keepsText) this.text += token;
    const chunk = chunkOf(wire, token);
    if (this.keepsText) chunk.cumulativeText = this.text;
    this.deliver(Object.freeze(chunk));
    this.owner.token(this, chunk);
  }

  settle(outcome: Outcome): boolean {
    if (this.outcome !== undefined) return false;
    this.outcome = outcome;
    if (outcome.kind === 'completed') {
      this.deliver(Object.freeze({ type: 'metadata', stats: Object.freeze(outcome.stats) }));
    } else if (outcome.kind === 'ended') {
      this.deliver(Object.freeze({
        type: 'error', error: Object.freeze(outcome.error.toObject()),
      }));
    }
    for (const waiter of this.waiters.splice(0)) this.end().then(waiter.resolve, waiter.reject);
    this.owner.settled(this, outcome);
    return true;
  }

  /** Its end by an error of the runtime's, which keeps the time limit, too: both say it alike. */
  settleWith(error: EngineClientError): boolean {
    const isLimit = error.code === 'Timeout' && !(error instanceof TimeoutError);
    return this.settle({
      kind: 'ended', error: isLimit ? new TimeoutError('generate', this.timeoutMs, this.id) : error,
    });
  }

  /** Where the runtime gave no statistics. */
  localStats(finishReason?: FinishReason): GenerationStats {
    const now = performance.now();
    const first = this.firstTokenAt ?? now;
    const after = (now - first) / 1000;
    const stats: GenerationStats = {
      tokensGenerated: this.nTokens,
      tokensPerSecond: after > 0 ? this.nTokens / after : 0,
      timeToFirstToken: (first - this.createdAt) / 1000,
      totalTime: (now - this.createdAt) / 1000,
      modelId: this.modelId,
    };
    if (finishReason !== undefined) stats.finishReason = finishReason;
    return stats;
  }

  private deliver(chunk: GeneratorChunk): void {
    const waiter = this.waiters.shift();
    if (waiter === undefined) {
      this.chunks.push(chunk);
      return;
    }
    waiter.resolve({ done: false, value: chunk });
    if (chunk.type === 'token') this.owner.taken(this, 1);
  }

  /** Thrown once; afterwards the iterator is over like any other. */
  private end(): Promise<Step> {
    const { outcome } = this;
    if (outcome?.kind === 'failed') {
      this.outcome = { kind: 'left' };
      return Promise.reject(outcome.error);
    }
    return Promise.resolve({ done: true, value: undefined });
  }
}

const isOptional = (value: unknown, type: string): boolean =>
  value === undefined || typeof value === type;

/** On the path of every token: no schema. */
function isToken(value: unknown): value is WireToken {
  if (typeof value !== 'object' || value === null) return false;
  const { token, token_id, logprob, top_logprobs } = value as Record<string, unknown>;
  return isOptional(token, 'string') && isOptional(token_id, 'number')
    && (logprob === null || isOptional(logprob, 'number'))
    && (top_logprobs === undefined || (Array.isArray(top_logprobs) && top_logprobs.every(isLikely)));
}

function isLikely(value: unknown): boolean {
  return isToken(value) && value.logprob !== undefined;
}

/** Of each token: nothing is made that is not kept. */
function chunkOf(wire: WireToken, token: string): Writable<TokenChunk> {
  const isFinal = wire.is_final === true;
  const chunk: Writable<TokenChunk> = wire.token_id === undefined
    ? { type: 'token', token, isFinal }
    : { type: 'token', token, tokenId: wire.token_id, isFinal };
  if (wire.logprob !== undefined) chunk.logprob = wire.logprob ?? -Infinity;
  if (wire.top_logprobs !== undefined) chunk.topLogprobs = likeliest(wire.top_logprobs);
  return chunk;
}

function likeliest(list: NonNullable<WireToken['top_logprobs']>): readonly TopLogprob[] {
  return Object.freeze(list.map(({ token, token_id, logprob }) => Object.freeze({
    ...(token !== undefined && { token }), ...(token_id !== undefined && { tokenId: token_id }),
    logprob: logprob ?? -Infinity,
  })));
}
