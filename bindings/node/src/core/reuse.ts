// Generations that need not be computed again: equal ones that are under way share one, and texts
// that were complete are kept. Only what must come out the same counts as equal (temperature 0, or
// a seed).
import { cancelled } from '../errors.js';
import type { Config } from '../config.js';
import { Coalescer, ResponseCache, fingerprint, isDeterministic } from '../services/index.js';
import type { CreateGeneratorOptions, GeneratorParams } from '../types.js';

export class Reuse {
  readonly coalescer: Coalescer;
  readonly cache: ResponseCache<string>;

  constructor(private readonly config: Config) {
    const sharing = config.request_coalescing;
    const keeping = config.prompt_cache;
    this.coalescer = new Coalescer({
      enabled: sharing.enabled, maxEntries: sharing.max_entries,
      maxSubscribers: sharing.max_subscribers, windowMs: sharing.timeout_ms,
      cancelledError: (reason) => cancelled('generate', reason),
    });
    this.cache = new ResponseCache<string>({
      maxEntries: keeping.max_entries, maxTokens: keeping.max_tokens, maxBytes: keeping.max_bytes,
      ttlMs: keeping.ttl_ms,
    });
  }

  /** `compute` is called unless somebody has computed the same, or is at it. A stream that is named
   * or has a limit of its own is nobody else's. */
  async text(params: GeneratorParams, options: CreateGeneratorOptions,
    compute: (options: CreateGeneratorOptions) => Promise<string>): Promise<string> {
    if (options.signal?.aborted) throw cancelled('generate', options.signal.reason);
    const mayKeep = this.config.prompt_cache.enabled;
    const mayShare = this.config.request_coalescing.enabled
      && options.streamId === undefined && options.timeoutMs === undefined;
    if ((!mayKeep && !mayShare) || !isDeterministic(params)) return compute(options);
    const key = fingerprint(params);
    const kept = mayKeep ? this.cache.get(key) : undefined;
    if (kept !== undefined) return kept;
    const { signal, ...rest } = options;
    const text = mayShare
      ? await this.coalescer.run(key, (shared) => compute({ ...rest, signal: shared }), signal)
      : await compute(options);
    if (mayKeep) {
      // Tokens are not counted here; four characters a token is what the bound needs.
      const size = { tokens: Math.ceil(text.length / 4), bytes: Buffer.byteLength(text) };
      this.cache.set(key, text, params.model, size);
    }
    return text;
  }
}
