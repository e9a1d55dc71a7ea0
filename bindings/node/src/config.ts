// The configuration: one schema with every key, its default and its bounds. Unknown keys are
// refused by name; keys of the ancestor that have nothing to act upon any more are dropped with a
// warning.
import { readFileSync } from 'node:fs';
import { z } from 'zod';
import { EngineClientError } from './errors.js';
import { failOfIssues } from './issues.js';
import { isObject } from './objects.js';

const count = (min: number, max: number) => z.number().int().min(min).max(max);
const ms = (min = 0) => count(min, 86_400_000);

const RuntimeSection = z.strictObject({
  startup_timeout_ms: ms(1).default(30_000),
  shutdown_timeout_ms: ms(1).default(5_000),
  /** Crashes in a row without an answered call between them; then only a call starts it again. */
  max_restarts: count(0, 1_000_000).default(3),
  /** The first restart is immediate; from the second crash within healthy_after_ms on: this,
   * doubled each time, at most restart_delay_max_ms. */
  restart_delay_base_ms: ms().default(100),
  restart_delay_max_ms: ms().default(500),
  healthy_after_ms: ms(1).default(60_000),
  /** A child that leaves health_failures_max questions in a row unanswered, for this long each,
   * counts as crashed; 0: nobody asks. */
  health_interval_ms: ms().default(0),
  health_failures_max: count(1, 1_000).default(3),
});

const RetrySection = z.strictObject({
  max_attempts: count(1, 20).default(3),
  initial_delay_ms: ms().default(100),
  backoff_multiplier: z.number().min(1).max(10).default(2),
  max_delay_ms: ms().default(5_000),
  jitter: z.number().min(0).max(1).default(0.25),
});

const BreakerSection = z.strictObject({
  failure_threshold: count(1, 1_000_000).default(5),
  failure_window_ms: ms(1).default(60_000),
  recovery_timeout_ms: ms(1).default(10_000),
  half_open_success_threshold: count(1, 1_000).default(2),
});

const JsonRpcSection = z.strictObject({
  default_timeout_ms: ms(1).default(300_000),
  /** Bytes of one message that is read; a longer one fails its own request only. */
  max_line_buffer_size: count(1024, 0x1fff_ffff).default(300 * 1024 * 1024),
  /** Calls under way at once; more wait for their turn. */
  max_pending_requests: count(1, 192).default(128),
  /** Calls that may wait; more are refused. */
  max_waiting_requests: count(1, 1_000_000).default(10_000),
  retry: RetrySection.prefault({}),
  circuit_breaker: BreakerSection.prefault({}),
});

const StreamSection = z.strictObject({
  /** Streams under way at once; more wait for their turn, as long as their own time limit. */
  max_active_streams: count(1, 64).default(50),
  max_waiting_streams: count(0, 1_000_000).default(1_000),
  default_timeout_ms: ms(1).default(300_000),
  /** Chunks that a stream may be ahead of its consumer. */
  max_unacked_chunks: count(1, 100_000).default(64),
});

const ModelSection = z.strictObject({
  default_max_tokens: count(1, 100_000).default(512),
  default_context_length: count(1, 1_000_000).optional(),
  max_loaded_models: count(1, 16).default(5),
  load_timeout_ms: ms(1).default(300_000),
  memory_cache: z.strictObject({
    warmup_on_start: z.array(z.string().min(1)).max(16).default([]),
  }).prefault({}),
});

const CacheSection = z.strictObject({
  enabled: z.boolean().default(true),
  cache_dir: z.string().min(1).optional(),
  max_size_bytes: count(1_048_576, Number.MAX_SAFE_INTEGER).optional(),
});

const BatchSection = z.strictObject({
  enabled: z.boolean().default(true),
  max_batch_size: count(1, 64).default(20),
  flush_interval_ms: ms().default(2),
  adaptive_sizing: z.boolean().default(true),
  target_batch_time_ms: z.number().positive().max(60_000).default(10),
  priority_queue: z.boolean().default(true),
});

/** Equal deterministic generations (temperature 0, or a seed) that are under way share one. */
const CoalescingSection = z.strictObject({
  enabled: z.boolean().default(false),
  max_entries: count(1, 1_000_000).default(1_000),
  max_subscribers: count(1, 1_000_000).default(100),
  timeout_ms: ms(1).default(5_000),
});

/** Texts of deterministic generations. */
const ResponseCacheSection = z.strictObject({
  enabled: z.boolean().default(false),
  max_entries: count(1, 10_000_000).default(10_000),
  max_tokens: count(1, 1_000_000_000).default(1_000_000),
  max_bytes: count(1, Number.MAX_SAFE_INTEGER).default(104_857_600),
  ttl_ms: ms(1).default(300_000),
});

const QosSection = z.strictObject({
  enabled: z.boolean().default(false),
  evaluation_interval_ms: ms(1).default(5_000),
  window_ms: ms(1).default(60_000),
  cooldown_ms: ms().default(60_000),
  policies: z.array(z.strictObject({
    name: z.string().min(1),
    metric: z.enum(['ttft', 'latency_p95', 'error_rate', 'throughput']),
    max: z.number().optional(),
    min: z.number().optional(),
    action: z.enum(['alert', 'restart']),
  })).max(100).optional(),
});

const TelemetrySection = z.strictObject({
  enabled: z.boolean().default(false),
  service_name: z.string().regex(/^[A-Za-z0-9_-]{1,100}$/).default('kr-serve'),
  prometheus_port: count(0, 65_535).default(9464),
  export_interval_ms: count(1_000, 600_000).default(60_000),
});

export const ConfigSchema = z.strictObject({
  runtime: RuntimeSection.prefault({}),
  json_rpc: JsonRpcSection.prefault({}),
  stream_registry: StreamSection.prefault({}),
  model: ModelSection.prefault({}),
  cache: CacheSection.prefault({}),
  batch_queue: BatchSection.prefault({}),
  request_coalescing: CoalescingSection.prefault({}),
  prompt_cache: ResponseCacheSection.prefault({}),
  qos: QosSection.prefault({}),
  telemetry: TelemetrySection.prefault({}),
});

export type Config = z.output<typeof ConfigSchema>;
export type ConfigInput = z.input<typeof ConfigSchema>;

/** Sections of the ancestor that configured what is not there any more. */
const INERT = new Set([
  'mlx', 'model_concurrency_limiter', 'python_bridge', 'object_pooling', 'outlines', 'performance',
  'development',
]);
const RENAMED: ReadonlyMap<string, string> = new Map([
  ['python_runtime', 'runtime'], ['request_deduplication', 'request_coalescing'],
]);

function readFile(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new EngineClientError('InvalidParams', `config '${path}': ${(error as Error).message}`,
      { field: 'config' }, error);
  }
}

/** Reads, checks and completes a configuration; `warn` hears of keys without effect. */
export function loadConfig(input: string | ConfigInput | undefined,
  warn: (message: string) => void): Config {
  const raw = typeof input === 'string' ? readFile(input) : input ?? {};
  if (!isObject(raw)) {
    throw new EngineClientError('InvalidParams', 'config must be an object', { field: 'config' });
  }
  const known = new Map<string, unknown>();
  for (const [key, value] of Object.entries(raw)) {
    if (INERT.has(key)) {
      warn(`config: '${key}' has no effect`);
      continue;
    }
    const name = RENAMED.get(key) ?? key;
    if (name !== key) warn(`config: '${key}' is called '${name}' now`);
    known.set(name, value);
  }
  const parsed = ConfigSchema.safeParse(Object.fromEntries(known));
  if (!parsed.success) throw failOfIssues('config', parsed.error.issues, 'config');
  return parsed.data;
}
