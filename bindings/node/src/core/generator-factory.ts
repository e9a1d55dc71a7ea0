// Makes generations: merges a model's defaults, waits for the model and for a place, asks the
// runtime, and tells everybody how it went. The order is: place, model, call; whatever fails or is
// cancelled in between, the place goes back and the runtime is told if it knows.
import { randomUUID } from 'node:crypto';
import { checkGeneratorOptions, checkGeneratorParams } from '../check.js';
import { TimeoutError, cancelled, malformed, toEngineError } from '../errors.js';
import type { EngineClientError } from '../errors.js';
import type { RequestOptions } from '../rpc/client.js';
import { renderTemplate } from '../template.js';
import type {
  CreateGeneratorOptions, FinishReason, GenerationStats, GeneratorChunk, GeneratorParams,
  TokenChunk,
} from '../types.js';
import { GenerationStream } from './stream.js';
import type { Outcome, StreamOwner } from './stream.js';
import { statsOfWire } from './stream-registry.js';
import type { StreamRegistry, WireStats } from './stream-registry.js';

/** The runtime ends a generation by itself; this much later nobody hopes for its answer. */
const ANSWER_GRACE_MS = 10_000;

export interface GenerationObserver {
  started(stream: GenerationStream, prompt: string): void;
  token(stream: GenerationStream, chunk: TokenChunk): void;
  completed(stream: GenerationStream, stats: GenerationStats): void;
  failed(stream: GenerationStream, error: EngineClientError): void;
  /** Whether somebody wants to see each token. */
  wantsTokens(): boolean;
}

export interface FactoryOptions {
  registry: StreamRegistry;
  call: <T>(method: string, params: Record<string, unknown>, request: RequestOptions) => Promise<T>;
  /** Waits until the model is ready; the result gives it back. */
  acquire: (modelId: string) => Promise<() => void>;
  defaultsOf: (modelId: string) => Partial<GeneratorParams> | undefined;
  observer: GenerationObserver;
  timeoutMs: number;
  maxTokens: number;
  credits: number;
}

const WIRE_NAMES: Partial<Record<keyof GeneratorParams, string>> = {
  maxTokens: 'max_tokens', temperature: 'temperature', topP: 'top_p', topK: 'top_k',
  minP: 'min_p', typicalP: 'typical_p', presencePenalty: 'presence_penalty',
  frequencyPenalty: 'frequency_penalty', repetitionPenalty: 'repetition_penalty',
  logitBias: 'logit_bias', stopSequences: 'stop_sequences', stopTokenIds: 'stop_token_ids',
  seed: 'seed', logprobs: 'logprobs', topLogprobs: 'top_logprobs', ignoreEos: 'ignore_eos',
  cachePrompt: 'cache_prompt',
};

function putPrompt(params: GeneratorParams, wire: Record<string, unknown>): void {
  const { prompt } = params;
  if (params.messages !== undefined) wire['messages'] = params.messages;
  else if (params.promptTokens !== undefined) wire['prompt_tokens'] = params.promptTokens;
  else if (typeof prompt === 'string') wire['prompt'] = prompt;
  else if (prompt !== undefined && 'tokens' in prompt) wire['prompt_tokens'] = prompt.tokens;
  else if (prompt !== undefined) wire['prompt'] = renderTemplate(prompt.template, prompt.variables);
}

/** What the runtime is asked for, without what belongs to the stream. */
export function wireParams(params: GeneratorParams): Record<string, unknown> {
  const wire: Record<string, unknown> = { model_id: params.model };
  putPrompt(params, wire);
  for (const [name, wireName] of Object.entries(WIRE_NAMES)) {
    const value = params[name as keyof GeneratorParams];
    if (value !== undefined) wire[wireName] = value;
  }
  return wire;
}

function promptText(params: GeneratorParams): string {
  const { prompt } = params;
  if (typeof prompt === 'string') return prompt;
  if (prompt !== undefined && 'template' in prompt) {
    return renderTemplate(prompt.template, prompt.variables);
  }
  if (params.messages !== undefined) return JSON.stringify(params.messages);
  return '';
}

/** One generation: what was asked for, and what happens to its stream. */
class Generation implements StreamOwner {
  readonly stream: GenerationStream;
  /** Of a stream that ended with an error chunk or by throwing. */
  error: EngineClientError | undefined;
  private readonly timeoutMs: number;
  private release: (() => void) | undefined;
  private stopWatching = (): void => {};

  constructor(private readonly factory: FactoryOptions, private readonly params: GeneratorParams,
    private readonly options: CreateGeneratorOptions,
    private readonly mistake: EngineClientError | undefined) {
    this.timeoutMs = options.timeoutMs ?? factory.timeoutMs;
    this.stream = new GenerationStream(options.streamId ?? randomUUID(), params.model,
      this.timeoutMs, this, options.cumulativeText === true);
  }

  begin(stream: GenerationStream): void {
    this.run(stream).catch((thrown: unknown) => {
      this.factory.registry.leaveWire(stream);
      stream.settle({ kind: 'failed', error: toEngineError(thrown) });
    });
  }

  taken(stream: GenerationStream, n: number): void {
    this.factory.registry.acknowledgeChunk(stream, n);
  }

  token(stream: GenerationStream, chunk: TokenChunk): void {
    this.factory.observer.token(stream, chunk);
  }

  settled(stream: GenerationStream, outcome: Outcome): void {
    const { registry, observer } = this.factory;
    this.stopWatching();
    this.release?.();
    this.release = undefined;
    if (outcome.kind === 'completed') {
      registry.settled(stream, 'completed', outcome.stats);
      observer.completed(stream, outcome.stats);
      return;
    }
    this.error = outcome.kind === 'left' ? undefined : outcome.error;
    const isCancel = this.error === undefined || this.error.code === 'Cancelled';
    registry.settled(stream, isCancel ? 'cancelled' : 'failed');
    if (this.error !== undefined && !isCancel) observer.failed(stream, this.error);
  }

  private async run(stream: GenerationStream): Promise<void> {
    const { registry } = this.factory;
    if (this.mistake !== undefined) throw this.mistake;
    if (this.options.signal?.aborted) throw cancelled('generate', this.options.signal.reason);
    this.watch(stream);
    await registry.admit(stream);
    if (stream.isSettled) return;
    const release = await this.factory.acquire(this.params.model);
    if (stream.isSettled) {
      release();
      return;
    }
    this.release = release;
    await this.ask(stream);
  }

  private async ask(stream: GenerationStream): Promise<void> {
    const { registry, credits, call, observer, maxTokens, defaultsOf } = this.factory;
    const params = { maxTokens, ...defaultsOf(this.params.model), ...this.params };
    const isStreaming = params.streaming !== false;
    const wire = {
      ...wireParams(params), stream_id: stream.id,
      ...(isStreaming ? { credits } : { stream: false }),
      ...(this.options.timeoutMs !== undefined && { timeout_ms: this.timeoutMs }),
      ...(this.options.priority !== undefined && { priority: this.options.priority }),
    };
    const method = params.messages === undefined ? 'generate' : 'chat';
    observer.started(stream, promptText(params));
    registry.enterWire(stream);
    const request: RequestOptions = { model: this.params.model };
    if (!isStreaming) request.timeoutMs = this.timeoutMs + ANSWER_GRACE_MS;
    try {
      const answer = await call<Record<string, unknown>>(method, wire, request);
      if (!isStreaming) this.takeWhole(stream, method, answer);
      else if (answer['stream_id'] !== stream.id) throw malformed(method);
      else registry.cancelSettled(stream);
    } catch (thrown) {
      registry.leaveWire(stream);
      this.fail(stream, toEngineError(thrown), isStreaming);
    }
  }

  private takeWhole(stream: GenerationStream, method: string,
    answer: Record<string, unknown>): void {
    this.factory.registry.leaveWire(stream);
    const { text, finish_reason, stats } = answer;
    const reason = typeof finish_reason === 'string' ? finish_reason as FinishReason : undefined;
    const isWhole = typeof text === 'string' && typeof stats === 'object' && stats !== null;
    if (!isWhole) throw malformed(method);
    const whole = statsOfWire(stats as WireStats, stream.modelId, reason);
    stream.push({ token: text, is_final: true });
    stream.settle({ kind: 'completed', stats: whole });
  }

  /** A time limit met inside the runtime is one of the stream, not of the call. */
  private fail(stream: GenerationStream, error: EngineClientError, isStreaming: boolean): void {
    const isInside = !isStreaming && ['Timeout', 'Cancelled'].includes(error.code)
      && !(error instanceof TimeoutError);
    if (isInside) stream.settleWith(error);
    else stream.settle({ kind: 'failed', error });
  }

  private watch(stream: GenerationStream): void {
    const { signal } = this.options;
    const end = (error: EngineClientError): void => {
      stream.settle({ kind: 'ended', error });
    };
    const onAbort = (): void => end(cancelled('generate', signal?.reason));
    const timer = setTimeout(() => end(new TimeoutError('generate', this.timeoutMs, stream.id)),
      this.timeoutMs);
    signal?.addEventListener('abort', onAbort, { once: true });
    this.stopWatching = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    };
  }
}

export class GeneratorFactory {
  constructor(private readonly options: FactoryOptions) {}

  /** A mistake in the parameters is thrown by the first next(), before anything is sent. */
  create(params: unknown, options: unknown): GenerationStream {
    return this.make(params, options).stream;
  }

  /** The whole text. Where nobody wants to see each token, none are sent. */
  async collect(params: unknown, options: unknown): Promise<string> {
    const generation = this.make(params, options, !this.options.observer.wantsTokens());
    let text = '';
    for await (const chunk of generation.stream as AsyncIterable<GeneratorChunk>) {
      if (chunk.type === 'token') text += chunk.token;
    }
    if (generation.error !== undefined) throw generation.error;
    return text;
  }

  private make(params: unknown, options: unknown, isWhole = false): Generation {
    try {
      const checked = checkGeneratorParams(params);
      const opts = checkGeneratorOptions(options);
      if (isWhole && checked.streaming === undefined) checked.streaming = false;
      return new Generation(this.options, checked, opts, undefined);
    } catch (error) {
      return new Generation(this.options, { model: '' }, {}, toEngineError(error));
    }
  }
}
