// Answers of deterministic requests, least recently used first to go. Bounded by entries, tokens,
// bytes and age; no timer: what is too old goes when it is met or when room is needed.

import { type Clock, systemClock } from './clock.js';

export interface ResponseCacheOptions {
  maxEntries?: number;
  maxTokens?: number;
  maxBytes?: number;
  ttlMs?: number;
  clock?: Clock;
}

export interface ResponseCacheStats {
  entries: number;
  tokens: number;
  bytes: number;
  hits: number;
  misses: number;
  evictions: number;
  /** 0 to 1; 0 before the first look-up. */
  hitRate: number;
}

interface Entry<Value> {
  value: Value;
  group: string;
  tokens: number;
  bytes: number;
  storedAt: number;
}

export class ResponseCache<Value> {
  private readonly entries = new Map<string, Entry<Value>>(); // oldest use first
  private readonly clock: Clock;
  private readonly limits: { entries: number; tokens: number; bytes: number; ttlMs: number };
  private tokens = 0;
  private bytes = 0;
  private counts = { hits: 0, misses: 0, evictions: 0 };

  constructor(options: ResponseCacheOptions = {}) {
    this.clock = options.clock ?? systemClock;
    this.limits = {
      entries: options.maxEntries ?? 10_000,
      tokens: options.maxTokens ?? 1_000_000,
      bytes: options.maxBytes ?? 104_857_600,
      ttlMs: options.ttlMs ?? 300_000,
    };
  }

  get(key: string): Value | undefined {
    const entry = this.entries.get(key);
    if (entry && this.isFresh(entry)) {
      this.counts.hits++;
      this.entries.delete(key);
      this.entries.set(key, entry);
      return entry.value;
    }
    if (entry) this.evict(key, entry);
    this.counts.misses++;
    return undefined;
  }

  /** group: what clearGroup() names, the model. What is larger than the cache is not kept. */
  set(key: string, value: Value, group: string, size: { tokens: number; bytes: number }): void {
    const old = this.entries.get(key);
    if (old) this.remove(key, old);
    const { entries, tokens, bytes } = this.limits;
    if (size.tokens > tokens || size.bytes > bytes || entries < 1) return;
    this.entries.set(key, { value, group, ...size, storedAt: this.clock.now() });
    this.tokens += size.tokens;
    this.bytes += size.bytes;
    for (const [name, entry] of this.entries) {
      const isOver = this.entries.size > entries || this.tokens > tokens || this.bytes > bytes;
      if (!isOver && this.isFresh(entry)) break;
      this.evict(name, entry);
    }
  }

  /** Forgets all of a model that has gone. */
  clearGroup(group: string): void {
    for (const [key, entry] of this.entries) if (entry.group === group) this.remove(key, entry);
  }

  clear(): void {
    this.entries.clear();
    this.tokens = this.bytes = 0;
  }

  stats(): ResponseCacheStats {
    const { hits, misses } = this.counts;
    return {
      entries: this.entries.size, tokens: this.tokens, bytes: this.bytes, ...this.counts,
      hitRate: hits + misses === 0 ? 0 : hits / (hits + misses),
    };
  }

  private isFresh(entry: Entry<Value>): boolean {
    return this.clock.now() - entry.storedAt <= this.limits.ttlMs;
  }

  private evict(key: string, entry: Entry<Value>): void {
    this.remove(key, entry);
    this.counts.evictions++;
  }

  private remove(key: string, entry: Entry<Value>): void {
    this.entries.delete(key);
    this.tokens -= entry.tokens;
    this.bytes -= entry.bytes;
  }
}
