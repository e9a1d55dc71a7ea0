// Tells the world: events to listeners, hooks to whoever measures. A listener or hook that throws
// is logged and stops nobody.
import type { EventEmitter } from 'node:events';
import { EngineClientError } from '../errors.js';
import type { CircuitState } from '../errors.js';
import type { RpcObserver } from '../rpc/client.js';
import type { QosMonitor, QosViolation } from '../services/index.js';
import type {
  EngineEvents, EngineHooks, InvalidationReason, Logger, ModelHandle, RuntimeStatus,
} from '../types.js';
import type { GenerationObserver } from './generator-factory.js';

type Payload<K extends keyof EngineEvents> = Omit<EngineEvents[K], 'timestamp'>;
type Args<K extends keyof EngineHooks> = Parameters<NonNullable<EngineHooks[K]>>;

/** What the caller did wrong says nothing of the service. */
const CALLERS: ReadonlySet<string> = new Set([
  'InvalidParams', 'InvalidRequest', 'MethodNotFound', 'GuidanceError', 'ModelNotLoaded',
]);

export class Announcer {
  private readonly hooks: EngineHooks[] = [];

  constructor(private readonly emitter: EventEmitter, private readonly logger: Logger) {}

  add(hooks: EngineHooks): void {
    this.hooks.push(hooks);
  }

  hook<K extends keyof EngineHooks>(name: K, ...args: Args<K>): void {
    for (const hooks of this.hooks) {
      if (hooks[name] === undefined) continue;
      this.guard(name, () => (hooks[name] as (...all: Args<K>) => void)(...args));
    }
  }

  status(status: RuntimeStatus, previousStatus: RuntimeStatus): void {
    this.tell('runtime:status', { status, previousStatus });
  }

  loaded(handle: ModelHandle): void {
    this.hook('onModelLoaded', handle);
    this.tell('model:loaded', { modelId: handle.descriptor.id, handle });
  }

  unloaded(modelId: string): void {
    this.hook('onModelUnloaded', modelId);
    this.tell('model:unloaded', { modelId });
  }

  invalidated(modelId: string, reason: InvalidationReason): void {
    if (reason !== 'unload') this.hook('onModelUnloaded', modelId);
    this.tell('model:invalidated', { modelId, reason });
  }

  failed(error: EngineClientError, context?: string): void {
    this.hook('onError', error);
    this.tell('error', { error: error.toObject(), ...(context !== undefined && { context }) });
  }

  circuit(circuit: string, from: CircuitState, to: CircuitState): void {
    this.hook('onCircuitBreakerStateChange', circuit, from, to);
    if (to !== 'open') return;
    this.failed(new EngineClientError('TransportError', `'${circuit}' has failed repeatedly`,
      { circuit, circuitState: to }), 'circuit_breaker');
  }

  violated(violation: QosViolation): void {
    this.logger.warn(`kr-serve: QoS policy '${violation.policy}': ${violation.metric} is `
      + `${violation.value}, the limit is ${violation.limit}`);
    this.tell('qos:violation', { violation });
  }

  readonly rpc: RpcObserver = {
    started: (method) => this.hook('onIpcRequestStarted', method),
    finished: (method, durationMs, error) =>
      this.hook('onIpcRequestFinished', method, durationMs, error?.code),
    retried: (method) => this.hook('onRetry', method),
  };

  generation(qos: QosMonitor): GenerationObserver {
    return {
      started: (stream, prompt) => this.tell('generation:started',
        { streamId: stream.id, modelId: stream.modelId, prompt }),
      token: (stream, chunk) => {
        if (this.hooks.length > 0 && this.has('onTokenGenerated')) {
          this.hook('onTokenGenerated', chunk.token, stream.localStats());
        }
        if (this.emitter.listenerCount('generation:token') === 0) return;
        this.tell('generation:token', {
          streamId: stream.id, token: chunk.token,
          ...(chunk.logprob !== undefined && { logprob: chunk.logprob }),
        });
      },
      completed: (stream, stats) => {
        qos.record({
          ttftMs: stats.timeToFirstToken * 1000, latencyMs: (stats.totalTime ?? 0) * 1000,
          tokens: stats.tokensGenerated, isError: false,
        });
        this.hook('onGenerationCompleted', stats);
        this.tell('generation:completed', { streamId: stream.id, stats });
      },
      failed: (stream, error) => {
        const durationMs = performance.now() - stream.createdAt;
        if (!CALLERS.has(error.code)) {
          qos.record({ latencyMs: durationMs, tokens: stream.nTokens, isError: true });
        }
        this.hook('onGenerationFailed', {
          modelId: stream.modelId, code: error.code, tokensGenerated: stream.nTokens, durationMs,
        });
        this.failed(error, 'generation');
      },
      wantsTokens: () => this.has('onTokenGenerated')
        || this.emitter.listenerCount('generation:token') > 0,
    };
  }

  private has(name: keyof EngineHooks): boolean {
    return this.hooks.some((hooks) => hooks[name] !== undefined);
  }

  private tell<K extends keyof EngineEvents>(event: K, payload: Payload<K>): void {
    // An `error` that nobody listens to would be thrown.
    if (this.emitter.listenerCount(event) === 0) return;
    const whole = { ...payload, timestamp: Date.now() };
    for (const listener of this.emitter.rawListeners(event)) {
      this.guard(event, () => listener.call(this.emitter, whole));
    }
  }

  private guard(what: string, run: () => void): void {
    try {
      run();
    } catch (error) {
      this.logger.error(`kr-serve: a listener of '${what}' threw: ${String(error)}`);
    }
  }
}
